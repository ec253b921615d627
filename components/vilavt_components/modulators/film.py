"""Modulator `film`: the inquiry scales and shifts the channels of a block's normalised tokens."""

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

    hidden_dim: int = setting(0, help="width of a hidden layer between inquiry and scales (0 for none)", minimum=0)
    zero_init: bool = setting(True, help="start as no modulation, else with small random scales and shifts")


@modulators.register("film", FiLMConfig)
class FiLM(Modulator):
    """Feature-wise linear modulation from the pooled inquiry (Perez et al., 2018, arXiv 1709.07871, equation 2).

    At every site: y' = (1 + scale) * y + shift, where [scale, shift] = net(pooled inquiry) are [D] vectors of the
    token's inquiry group. The sites are a block's two norms. A block that does not offer its norms, such as a stage of
    a convolutional network, is modulated at its output.
    """

    def __init__(self, config: FiLMConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.sites = _choose_sites(block)
        self.nets = nn.ModuleDict()
        # Sorted: the order of a set changes from run to run, and with it the random weights of each site.
        for site in sorted(self.sites):
            self.nets[site] = _build_scale_and_shift(config, inquiry_width, block.sites[site])

    @classmethod
    def tiny(cls) -> FiLMConfig:
        """Return settings with a small hidden layer."""
        return FiLMConfig(hidden_dim=8)

    @classmethod
    def unsupported_reason(cls, config: FiLMConfig, block: BlockSpec) -> str:
        """Name the site that the block lacks; empty if it lacks none."""
        missing = sorted(_choose_sites(block) - set(block.sites))
        return f"it scales the output of '{missing[0]}', which this encoder does not offer." if missing else ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Scale and shift the output of a site; y [S, D] -> [S, D]."""
        # The net runs on G groups, not on S tokens: every token of a group has the same scale and shift.
        scale, shift = self.nets[site](inquiry.pooled).chunk(2, dim=-1)
        # Not y * (1 + scale): bfloat16 has 8 bits of mantissa, so a scale below 1/256 would vanish next to the 1.
        return y + torch.addcmul(inquiry.to_tokens(shift), y, inquiry.to_tokens(scale))


def _choose_sites(block: BlockSpec) -> frozenset[str]:
    """Return the block's norms, or its output if it offers that and neither norm."""
    norms = frozenset({"norm1", "norm2"})
    return frozenset({"block"}) if "block" in block.sites and not norms & set(block.sites) else norms


def _build_scale_and_shift(config: FiLMConfig, inquiry_width: int, width: int) -> nn.Sequential:
    """Build the net from a pooled inquiry [G, D_inquiry] to scale and shift [G, 2 D]."""
    hidden = config.hidden_dim or inquiry_width
    last = nn.Linear(hidden, 2 * width)
    nn.init.zeros_(last.bias)
    if config.zero_init:
        # Scale and shift start at 0, so the modulated encoder starts as the plain one, bit for bit.
        nn.init.zeros_(last.weight)
    else:
        nn.init.normal_(last.weight, std=0.02)
    return (
        nn.Sequential(nn.Linear(inquiry_width, hidden), nn.GELU(), last) if config.hidden_dim else nn.Sequential(last)
    )
