"""FiLM: the inquiry scales and shifts the channels of a block's normalised tokens, or of a stage's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class FiLMConfig:
    """Settings of the `film` modulator."""

    hidden_dim: int = setting(0, help="width of a hidden layer between inquiry and scales; 0: none", minimum=0)
    zero_init: bool = setting(True, help="start as no modulation; otherwise small random scales and shifts")


@modulators.register("film", FiLMConfig)
class FiLM(Modulator):
    """Per-channel scale and shift from the pooled inquiry, after a block's norms (Perez et al., 2018).

    Blocks that have their norms inside, as the stages of convolutional networks, are scaled and shifted as a whole.
    """

    def __init__(self, config: FiLMConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.sites = _sites(block)
        self.nets = nn.ModuleDict()
        for site in sorted(self.sites):
            self.nets[site] = _scale_and_shift(config, inquiry_width, block.sites[site])

    @classmethod
    def tiny(cls) -> FiLMConfig:
        """Return settings with a small hidden layer."""
        return FiLMConfig(hidden_dim=8)

    @classmethod
    def refusal(cls, config: FiLMConfig, block: BlockSpec) -> str:
        """Say which site the block lacks."""
        missing = sorted(_sites(block) - set(block.sites))
        return f"it scales the output of '{missing[0]}', which this encoder does not offer." if missing else ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """(1 + scale) y + shift, both computed once per group; y [S, D] -> [S, D]."""
        scale, shift = self.nets[site](inquiry.pooled).chunk(2, dim=-1)
        # Not y * (1 + scale): beside the 1 a bfloat16 has no room for a small scale.
        return y + torch.addcmul(inquiry.to_tokens(shift), y, inquiry.to_tokens(scale))


def _sites(block: BlockSpec) -> frozenset[str]:
    norms = frozenset({"norm1", "norm2"})
    return frozenset({"block"}) if "block" in block.sites and not norms & set(block.sites) else norms


def _scale_and_shift(config: FiLMConfig, inquiry_width: int, width: int) -> nn.Sequential:
    hidden = config.hidden_dim or inquiry_width
    last = nn.Linear(hidden, 2 * width)
    nn.init.zeros_(last.bias)
    if config.zero_init:
        nn.init.zeros_(last.weight)
    else:
        nn.init.normal_(last.weight, std=0.02)
    return (
        nn.Sequential(nn.Linear(inquiry_width, hidden), nn.GELU(), last) if config.hidden_dim else nn.Sequential(last)
    )
