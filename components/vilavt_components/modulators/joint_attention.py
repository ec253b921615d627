"""Modulator `joint_attention`: a block attends over all regions of an inquiry group and over the inquiry's tokens."""

from __future__ import annotations

from torch import nn

from vilavt_toolkit.contracts import BlockSpec, Context, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import NoSettings


@modulators.register("joint_attention")
class JointAttention(Modulator):
    """The paper's modulation (section 3): the inquiry's tokens are further keys and values of the block's attention.

    softmax(q [k; W_k i]^T / sqrt(d)) [v; W_v i], where q, k, v are those of all regions of the group, and i [T, D] the
    features of its inquiry tokens. Inquiry tokens are no queries. With rotary positions they come after the last region
    of the group. The block attends over the whole group (span `group`), also where the plain encoder uses windows.
    """

    span = "group"

    def __init__(self, config: NoSettings, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.heads = block.heads
        # Not zero, as in the paper: keys and values of zero would still take their share of the softmax away from
        # the image, and add nothing in return.
        self.key = nn.Linear(inquiry_width, block.heads * block.head_dim)
        self.value = nn.Linear(inquiry_width, block.heads * block.head_dim)

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()

    @classmethod
    def unsupported_reason(cls, config: NoSettings, block: BlockSpec) -> str:
        """Say that the block has no attention; empty if it has."""
        return "" if block.heads else "it adds keys and values, and the block has no attention of tokens."

    def context(self, inquiry: Inquiry) -> Context:
        """Return one key and one value per inquiry token; features [T, D] -> [T, H, d] each."""
        features = inquiry.features
        return Context(*(part(features).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value)))
