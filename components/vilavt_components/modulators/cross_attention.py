"""Cross attention: every vision token asks the inquiry's tokens what concerns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import setting

_HEAD = 32
"""Channels of a head where the block has no heads of its own."""


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Settings of the `cross_attention` modulator."""

    width: int = setting(
        0,
        help="channels of all heads together; 0: a quarter of the block's, at least 64 and at most its own",
        minimum=0,
    )
    heads: int = setting(0, help="attention heads; 0: as many as have the block's head size in `width`", minimum=0)
    site: Literal["attention", "mlp", "block"] | None = setting(
        None, help="after which part the answer is added; null: attention, in blocks that do not offer it block"
    )

    def __post_init__(self) -> None:
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"heads {self.heads} is no divisor of width {self.width}.")


@modulators.register("cross_attention", CrossAttentionConfig)
class CrossAttention(Modulator):
    """Gated attention from vision tokens to their inquiry's tokens, added to the attention branch of a block.

    The gate is the token's own, between 0 and 1 on every channel, since weights over the inquiry sum to 1 also where
    none of its words concerns the token. The output projection starts at zero rather than the gate of Flamingo
    (Alayrac et al., 2022): either makes a fresh modulator change nothing, but a closed gate lets only itself learn.
    """

    def __init__(self, config: CrossAttentionConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.site = _site(config, block)
        self.sites = frozenset({self.site})
        self.width, self.heads = _shape(config, block)
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
        """Return settings that add to a block's output, as staged backbones need, with widths left to the block."""
        return {"after the block": CrossAttentionConfig(site="block")}

    @classmethod
    def refusal(cls, config: CrossAttentionConfig, block: BlockSpec) -> str:
        """Say which site the block lacks."""
        site = _site(config, block)
        return "" if site in block.sites else f"it adds to the output of '{site}', which this encoder does not offer."

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Add what the inquiry's tokens tell, queried by x [S, D_in]; y [S, D] -> [S, D]."""
        dtype = self.ask.weight.dtype
        # Into the branches of a pre-norm block go normalised tokens. Without gain and shift, since `ask` follows.
        normal = F.layer_norm(x, x.shape[-1:]) if site == "block" else x
        q, gate = self.ask(normal.to(dtype)).chunk(2, dim=-1)
        k, v = self.tell(self.norm(inquiry.features.to(dtype))).chunk(2, dim=-1)
        told = inquiry.attend(*(t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))).flatten(1)
        added: Tensor = self.out(told * torch.sigmoid(gate))
        return y + added.to(y.dtype)


def _site(config: CrossAttentionConfig, block: BlockSpec) -> str:
    return config.site or ("attention" if "attention" in block.sites else "block")


def _shape(config: CrossAttentionConfig, block: BlockSpec) -> tuple[int, int]:
    """Width and heads."""
    size = block.head_dim or _HEAD
    if config.heads:
        return config.width or _quarter(block, config.heads), config.heads
    width = config.width or _quarter(block, 1)
    return width, next(heads for heads in range(max(1, width // size), 0, -1) if width % heads == 0)


def _quarter(block: BlockSpec, multiple: int) -> int:
    """A quarter of the block's width, no less than a tiny block can do with; in whole heads."""
    width = min(block.width, max(64, block.width // 4))
    return max(multiple, width // multiple * multiple)
