"""Floating-point operations of a training step, and the rate at which a device could do them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.models.batch import Batch
from vilavt_toolkit.models.model import VisualChatModel

_PEAKS = {
    "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H100 PCIE": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H800": 989.0,
    "A100": 312.0, "A800": 312.0, "H20": 148.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A40": 150.0, "A10": 125.0,
    "RTX 5090": 210.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense 16-bit products of matrices by device, in 10^12 operations per second, as NVIDIA's data sheets state them."""
_ROUNDS = 3


@dataclass
class StepCost:
    """The sizes of the batches of some steps, and the operations of training on them."""

    tokens: int = 0
    """Tokens that the language model reads, features included and padding not."""
    patches: int = 0
    flops: float = 0.0

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(self.tokens + other.tokens, self.patches + other.patches, self.flops + other.flops)


class TrainingCostCounter:
    """Counts the operations of forward and backward passes, as the mathematics needs them.

    A weight costs one product in the forward pass, one for the gradient that passes through it, and one for its own if
    it is trained: 6 operations a token for what is trained, 4 for a frozen weight below or above it. Attention costs
    twice its forward pass again. Blocks that are computed a second time to save memory are not counted twice.
    """

    def __init__(self, model: VisualChatModel) -> None:
        self._costs = CostCounter(model)
        vision = _trained_share([model.vision.backbone, model.vision.modulators])
        projector = _trained_share([model.projector])
        language_model = _trained_share([model.language_model])
        # Gradients pass through a part if it, or one that its input comes from, is trained.
        self._vision_passes = vision > 0
        self._reading_passes = language_model > 0 or projector > 0 or vision > 0
        self._vision_factor = 1.0 + self._vision_passes * (1.0 + vision)
        self._reading_factor = 1.0 + self._reading_passes * (1.0 + language_model)

    def count(self, batch: Batch) -> StepCost:
        """Count a micro-batch."""
        views, groups = batch.views, batch.groups
        seen, attention = self._costs.encoding_cost(views, groups), self._costs.encoding_attention_flops(views, groups)
        flops = self._vision_factor * (seen.flops - attention) + (1 + 2 * self._vision_passes) * attention
        lengths = _document_lengths(batch)
        for length, stem in zip(lengths, batch.stems or [-1] * len(lengths), strict=True):
            before = lengths[stem] if stem >= 0 else 0
            attention = self._costs.reading_attention_flops(length, before)
            weights = self._costs.reading_flops(length, before, 0) - attention
            flops += self._reading_factor * weights + (1 + 2 * self._reading_passes) * attention
        # The head makes logits at the columns that predict a token of the model.
        flops += self._reading_factor * self._costs.reading_flops(0, 0, len(batch.targets))
        return StepCost(sum(lengths), int(seen.patches), flops)


def _document_lengths(batch: Batch) -> list[int]:
    # Attention costs the square of a dialogue, whichever row it stands in.
    lengths: list[int] = list(batch.documents) or batch.mask.sum(1).tolist()
    return lengths


def _trained_share(modules: Iterable[nn.Module]) -> float:
    """Return the share of weights in matrices that are trained."""
    weights = {id(weight): weight for module in modules for weight in module.parameters() if weight.dim() > 1}
    trained = sum(weight.numel() for weight in weights.values() if weight.requires_grad)
    return trained / max(1, sum(weight.numel() for weight in weights.values()))


def find_peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of matrix products on a device: by its name, else measured."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        name = torch.cuda.get_device_name(device).upper()
        # The first that fits: names of special forms come before the plain ones.
        for key, teraflops in _PEAKS.items():
            if key in name:
                return teraflops * 1e12
    return _measure_peak_rate(device, dtype)


def _measure_peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a few products of square matrices, large enough to keep the device busy."""
    side, is_cuda = (8192, True) if device.type == "cuda" else (512, False)
    # No random numbers: a run must not depend on what it measures.
    matrix, best = torch.full((side, side), 0.5, dtype=dtype, device=device), float("inf")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            matrix @ matrix
            if is_cuda:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best
