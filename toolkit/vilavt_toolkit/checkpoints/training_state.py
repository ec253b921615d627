"""The training state that a checkpoint keeps beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """Everything beyond the weights that resuming needs: tensors by name, and plain data for JSON."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
