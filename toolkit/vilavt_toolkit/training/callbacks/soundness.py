"""The newest sound checkpoint of a run: one from which training went on well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.training.trainable import trainable_parameters

_GROWTH = 10.0
"""Times that sound weights may have grown since the stage began, as their root mean square."""
_SMALL = 1.0
"""Root mean square up to which weights are sound however small they began: new modulators begin at zero."""
_LOSS_FACTOR, _LOSS_MARGIN = 2.0, 1.0
"""A sound loss is at most the first step's times this factor plus this margin in nats, for batches differ."""

_KEYS = ("step", "first_size", "first_loss")


class Soundness:
    """Finds the newest sound checkpoint.

    A checkpoint is sound if its weights are finite and have not grown much, and if the first step from it that was not
    left out had a loss that is not much above the stage's first. The loss of reinforcement has no scale, so there it
    only has to be finite. The next step judges, because a step's loss is that of the weights before it.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """The step of the newest sound checkpoint; None before there is one."""
        self._first_size: float | None = None
        self._first_loss: float | None = None
        self._candidate: int | None = None

    def begin(self, module: StageModule, saved: Mapping[str, Any] | None) -> None:
        """Measure the weights that a stage begins with, or take `saved`, which `to_json` gave, if it is resumed."""
        if saved is not None:
            self.step, self._first_size, self._first_loss = (saved.get(key) for key in _KEYS)
        if self._first_size is None:
            self._first_size = measure_weights(module)
        if module.start_step:
            self.add_checkpoint(module)

    def add_checkpoint(self, module: StageModule) -> None:
        """Consider the checkpoint of the present weights."""
        limit = max(_SMALL, _GROWTH * (self._first_size or 0.0))
        # NaN and infinity are not below the limit.
        self._candidate = module.step if measure_weights(module) <= limit else None

    def judge_step(self, module: StageModule) -> None:
        """Judge the latest checkpoint by a step that was taken from it."""
        loss = module.taken_loss
        if loss is None or (self._candidate is None and self._first_loss is not None):
            return
        if self._first_loss is None:
            self._first_loss = loss
        is_low = not module.has_comparable_loss or loss <= _LOSS_FACTOR * self._first_loss + _LOSS_MARGIN
        if self._candidate is not None and is_low:
            self.step = self._candidate
        self._candidate = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which a resumed run goes on."""
        return dict(zip(_KEYS, (self.step, self._first_size, self._first_loss), strict=True))


def measure_weights(module: StageModule) -> float:
    """Return the root mean square of the trained weights; NaN or infinite if one of them is, or is beyond 1e19."""
    weights = [weight for _, weight in trainable_parameters(module.model)]
    # In float32 at least, without a copy of the weights. The sum of squares is in float64, which cannot overflow.
    with torch.no_grad():
        norms = [_measure_norm(weight) for weight in weights]
    return math.sqrt(sum(norm * norm for norm in norms) / sum(weight.numel() for weight in weights))


def _measure_norm(weight: Tensor) -> float:
    norm = torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    # Of a sharded weight every process gets the norm of the whole.
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
