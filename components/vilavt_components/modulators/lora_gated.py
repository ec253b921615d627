"""Modulator `lora_gated`: the inquiry gates low-rank deltas on the linear layers of a block."""

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

    rank: int = setting(16, help="number of directions that are added to each linear layer", minimum=1)
    scale: float = setting(1.0, help="factor of what is added", minimum=0)
    # One in each half of a block, attention and MLP, at layers that every plain ViT has. All four cost twice as much.
    targets: tuple[Target, ...] = setting(("qkv", "fc2"), help="linear layers of a block that get a delta")

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty. Name at least one of qkv, proj, fc1, fc2.")
        twice = next((target for target in self.targets if self.targets.count(target) > 1), None)
        if twice is not None:
            raise ValueError(f"targets names {twice} twice. Name every linear layer once.")
        if self.scale == 0:
            raise ValueError("scale 0 adds nothing and lets nothing learn. Give a positive number.")


class _LowRankDelta(nn.Module):
    """The delta of one linear layer: scale * B (gate(q) * A x), with A `down`, B `up` and q the normalised inquiry."""

    def __init__(self, in_width: int, out_width: int, rank: int, inquiry_width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(in_width, rank, bias=False)
        self.gate = nn.Linear(inquiry_width, rank)
        self.up = nn.Linear(rank, out_width, bias=False)
        # Only `up` is zero: that makes a fresh delta add nothing, while different inquiries already open different
        # directions, so `up` gets gradients that tell them apart from the first step.
        nn.init.zeros_(self.up.weight)
        # The inquiry is normalised to length sqrt(D), so this draws gates with a standard deviation of 1.
        nn.init.normal_(self.gate.weight, std=max(1, inquiry_width) ** -0.5)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, y: Tensor, pooled: Tensor, inquiry: Inquiry) -> Tensor:
        """Return y [S, D_out] plus the delta of x [S, D_in]; `pooled` [G, D_inquiry] are the normalised inquiries."""
        dtype = self.down.weight.dtype
        gates = inquiry.to_tokens(self.scale * self.gate(pooled.to(dtype)))
        opened = self.down(x.to(dtype)) * gates
        # One call: a separate sum would read and write all of y once more, which costs more than the products.
        return torch.addmm(y, opened.to(y.dtype), self.up.weight.t().to(y.dtype))


@modulators.register("lora_gated", LoRAGatedConfig)
class LoRAGated(Modulator):
    """LoRA (Hu et al., 2021, arXiv 2106.09685, equation 3) whose rank directions are gated by the inquiry.

    At every target: y' = y + scale * B (gate(q) * A x), where x [S, D_in] goes into the linear layer, y [S, D_out]
    comes out, A is [r, D_in], B [D_out, r], and gate(q) [r] a linear map of the layer-normalised pooled inquiry q. A
    gate has no squashing function: it does not saturate, and at the start it is as often negative as positive, so
    what is learned first depends on the inquiry and not on the image alone.
    """

    def __init__(self, config: LoRAGatedConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.sites = frozenset(config.targets)
        # Without gain and shift: the gates' own linear maps follow, and can learn both.
        self.norm = nn.LayerNorm(inquiry_width, elementwise_affine=False)
        self.deltas = nn.ModuleDict()
        for site in config.targets:
            self.deltas[site] = _LowRankDelta(
                block.input_width(site), block.sites[site], config.rank, inquiry_width, config.scale
            )

    @classmethod
    def tiny(cls) -> LoRAGatedConfig:
        """Return settings of rank 4."""
        return LoRAGatedConfig(rank=4)

    @classmethod
    def variants(cls) -> dict[str, LoRAGatedConfig]:
        """Return settings with deltas on every linear layer."""
        return {"all linears": LoRAGatedConfig(rank=2, targets=("qkv", "proj", "fc1", "fc2"), scale=0.5)}

    @classmethod
    def unsupported_reason(cls, config: LoRAGatedConfig, block: BlockSpec) -> str:
        """Name the linear layer that the block lacks; empty if it lacks none."""
        missing = [target for target in config.targets if target not in block.sites]
        return f"it adds to the output of '{missing[0]}', which this encoder does not offer." if missing else ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Add the delta of the linear layer at `site`; x [S, D_in], y [S, D] -> [S, D]."""
        added: Tensor = self.deltas[site](x, y, self.norm(inquiry.pooled), inquiry)
        return added
