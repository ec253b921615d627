"""Modulator `cross_attention`: every vision token attends to the tokens of its inquiry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import setting

_DEFAULT_HEAD_DIM = 32
"""Channels of a head if the block has no attention heads of its own."""


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Settings of the `cross_attention` modulator."""

    width: int = setting(
        0,
        help="channels of all heads together (0 for a quarter of the block's, at least 64 and at most its own)",
        minimum=0,
    )
    heads: int = setting(
        0, help="attention heads (0 for as many as fit into `width` at the block's head size)", minimum=0
    )
    site: Literal["attention", "mlp", "block"] | None = setting(
        None, help="part whose output is changed (null for attention, or for block if a block does not offer attention)"
    )

    def __post_init__(self) -> None:
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}. Change one of them.")


@modulators.register("cross_attention", CrossAttentionConfig)
class CrossAttention(Modulator):
    """Gated cross-attention from vision tokens to inquiry tokens, after Flamingo (Alayrac et al., 2022).

    At its one site: y' = y + W_out (sigmoid(g) * softmax(q k^T / sqrt(d)) v), where [q, g] = W_ask x are of the vision
    tokens x [S, D_in], and [k, v] = W_tell LN(i) of the inquiry tokens i [T, D]. The softmax sums to 1 even if no word
    of the inquiry concerns a token, so every token has a gate g per channel. W_out starts at zero, where Flamingo has a
    scalar gate start at zero. Both change nothing at first, but a closed gate lets nothing but itself learn.
    """

    def __init__(self, config: CrossAttentionConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.site = _choose_site(config, block)
        self.sites = frozenset({self.site})
        self.width, self.heads = _choose_width_and_heads(config, block)
        # Query and gate come from one linear layer, key and value from another: two kernels instead of four.
        self.ask = nn.Linear(block.input_width(self.site), 2 * self.width)
        self.norm = nn.LayerNorm(inquiry_width)
        self.tell = nn.Linear(inquiry_width, 2 * self.width)
        self.out = nn.Linear(self.width, block.sites[self.site], bias=False)
        nn.init.zeros_(self.out.weight)

    @classmethod
    def tiny(cls) -> CrossAttentionConfig:
        """Return settings of two narrow heads."""
        return CrossAttentionConfig(width=16, heads=2)

    @classmethod
    def variants(cls) -> dict[str, CrossAttentionConfig]:
        """Return settings that add to a block's output, as staged backbones need; the block decides the widths."""
        return {"after the block": CrossAttentionConfig(site="block")}

    @classmethod
    def unsupported_reason(cls, config: CrossAttentionConfig, block: BlockSpec) -> str:
        """Name the site that the block lacks; empty if it has it."""
        site = _choose_site(config, block)
        return "" if site in block.sites else f"it adds to the output of '{site}', which this encoder does not offer."

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Add the attention of tokens x [S, D_in] over their inquiry's tokens; y [S, D] -> [S, D]."""
        dtype = self.ask.weight.dtype
        # A branch of a pre-norm block gets normalised tokens, a whole block does not. No gain and shift: `ask` follows.
        normal = F.layer_norm(x, x.shape[-1:]) if site == "block" else x
        q, gate = self.ask(normal.to(dtype)).chunk(2, dim=-1)
        k, v = self.tell(self.norm(inquiry.features.to(dtype))).chunk(2, dim=-1)
        heads = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        attended = inquiry.attend(*heads).flatten(1)
        added: Tensor = self.out(attended * torch.sigmoid(gate))
        return y + added.to(y.dtype)


def _choose_site(config: CrossAttentionConfig, block: BlockSpec) -> str:
    """Return the set site, else the attention branch, else the block's output."""
    return config.site or ("attention" if "attention" in block.sites else "block")


def _choose_width_and_heads(config: CrossAttentionConfig, block: BlockSpec) -> tuple[int, int]:
    """Return the width of all heads together and their number, as set or derived from the block."""
    size = block.head_dim or _DEFAULT_HEAD_DIM
    if config.heads:
        return config.width or _default_width(block, config.heads), config.heads
    width = config.width or _default_width(block, 1)
    # As many heads as fit at the block's head size, but their number must divide the width; 1 always does.
    return width, next(heads for heads in range(max(1, width // size), 0, -1) if width % heads == 0)


def _default_width(block: BlockSpec, multiple: int) -> int:
    """Return a quarter of the block's width, at least 64 channels if it has them, as a multiple of `multiple`."""
    width = min(block.width, max(64, block.width // 4))
    return max(multiple, width // multiple * multiple)
