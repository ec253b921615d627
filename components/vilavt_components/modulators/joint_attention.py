"""Joint attention: a block attends over all regions of an inquiry and over the inquiry's own tokens."""

from __future__ import annotations

from torch import nn

from vilavt_toolkit.contracts import BlockSpec, Context, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import NoSettings


@modulators.register("joint_attention")
class JointAttention(Modulator):
    """The paper's modulation (section 3): inquiry tokens are keys and values beside those of the whole group.

    They ask nothing themselves, and stand behind the group's regions where positions are rotary. Windows, and with
    them the blocks' own partitions, give way to the group.
    """

    span = "group"

    def __init__(self, config: NoSettings, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.heads = block.heads
        # Drawn as any linear map, as in the paper: an inquiry that starts at zero would still take its share of the
        # softmax from the image, and give nothing for it.
        self.key = nn.Linear(inquiry_width, block.heads * block.head_dim)
        self.value = nn.Linear(inquiry_width, block.heads * block.head_dim)

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return its settings, of which there are none."""
        return NoSettings()

    @classmethod
    def refusal(cls, config: NoSettings, block: BlockSpec) -> str:
        """Say that the block has no attention to join."""
        return "" if block.heads else "it adds keys and values, and the block has no attention of tokens."

    def context(self, inquiry: Inquiry) -> Context:
        """One key and one value per inquiry token; features [T, D] -> [T, H, d] each."""
        features = inquiry.features
        return Context(*(part(features).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value)))
