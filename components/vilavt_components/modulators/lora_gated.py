"""LoRA with gates: the inquiry says how much each low-rank direction adds to a linear's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import setting

Target = Literal["qkv", "proj", "fc1", "fc2"]


@dataclass(frozen=True)
class LoRAGatedConfig:
    """Settings of the `lora_gated` modulator."""

    rank: int = setting(16, help="directions that are added to each linear", minimum=1)
    scale: float = setting(1.0, help="how strongly they are added", minimum=0)
    # One in each half of a block, of the outputs that every plain ViT has; all four cost twice as much.
    targets: tuple[Target, ...] = setting(("qkv", "fc2"), help="linears of a block that get them")

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty; name at least one of qkv, proj, fc1, fc2.")
        twice = next((target for target in self.targets if self.targets.count(target) > 1), None)
        if twice is not None:
            raise ValueError(f"targets names {twice} twice; name every linear once.")
        if self.scale == 0:
            raise ValueError("scale 0 adds nothing and lets nothing learn; give a positive number.")


class _Delta(nn.Module):
    """What is added to one linear."""

    def __init__(self, in_width: int, out_width: int, rank: int, inquiry_width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(in_width, rank, bias=False)
        self.gate = nn.Linear(inquiry_width, rank)
        self.up = nn.Linear(rank, out_width, bias=False)
        # Only `up` is zero: at once each inquiry opens other directions, and `up` learns what they add.
        nn.init.zeros_(self.up.weight)
        nn.init.normal_(self.gate.weight, std=max(1, inquiry_width) ** -0.5)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, y: Tensor, pooled: Tensor, inquiry: Inquiry) -> Tensor:
        """Add it to y [S, D_out] of tokens x [S, D_in] under the normalised inquiries `pooled` [G, D_inquiry]."""
        dtype = self.down.weight.dtype
        gates = inquiry.to_tokens(self.scale * self.gate(pooled.to(dtype)))
        opened = self.down(x.to(dtype)) * gates
        # In one call: a sum of its own would read and write all of y once more, which costs more than the products.
        return torch.addmm(y, opened.to(y.dtype), self.up.weight.t().to(y.dtype))


@modulators.register("lora_gated", LoRAGatedConfig)
class LoRAGated(Modulator):
    """Low-rank deltas (Hu et al., 2021) on chosen linears, y + B (gate(inquiry) * A x).

    A gate is a linear function of the normalised pooled inquiry, of either sign and unbounded: it does not saturate,
    and a fresh one is as often negative as positive, so that what is learned first belongs to the inquiry.
    """

    def __init__(self, config: LoRAGatedConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.sites = frozenset(config.targets)
        self.norm = nn.LayerNorm(inquiry_width, elementwise_affine=False)
        self.deltas = nn.ModuleDict()
        for site in config.targets:
            self.deltas[site] = _Delta(
                block.input_width(site), block.sites[site], config.rank, inquiry_width, config.scale
            )

    @classmethod
    def tiny(cls) -> LoRAGatedConfig:
        """Return settings of rank 4."""
        return LoRAGatedConfig(rank=4)

    @classmethod
    def variants(cls) -> dict[str, LoRAGatedConfig]:
        """Return settings with deltas on every linear."""
        return {"all linears": LoRAGatedConfig(rank=2, targets=("qkv", "proj", "fc1", "fc2"), scale=0.5)}

    @classmethod
    def refusal(cls, config: LoRAGatedConfig, block: BlockSpec) -> str:
        """Say which linear the block lacks."""
        missing = [target for target in config.targets if target not in block.sites]
        return f"it adds to the output of '{missing[0]}', which this encoder does not offer." if missing else ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Add the directions that the token's inquiry opens; x [S, D_in], y [S, D] -> [S, D]."""
        added: Tensor = self.deltas[site](x, y, self.norm(inquiry.pooled), inquiry)
        return added
