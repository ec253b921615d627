"""The training state that a checkpoint keeps beside the weights, so that training can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """What going on needs beyond the weights: tensors by name, and plain data."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
