"""The state of training beyond the weights, as tensors and plain data: optimizer, random numbers, loss scale."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.errors import RunError


def capture(optimizer: torch.optim.Optimizer, scaler: Any = None, stage: TrainingState | None = None) -> TrainingState:
    """Everything `restore` needs, with what the stage itself goes on from."""
    tensors: dict[str, Tensor] = {"random.torch": torch.get_rng_state()}
    data: dict[str, Any] = {"random.python": random.getstate(), "random.numpy": _numpy_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random.cuda.{index}"] = state
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                data[f"optimizer.{index}.{key}"] = value
    data["trained"] = _shapes(optimizer)
    data["scaler"] = scaler.state_dict() if scaler is not None else None
    if stage is not None:
        tensors, data = tensors | stage.tensors, data | stage.data
    return TrainingState(tensors, data)


def check(state: TrainingState, optimizer: torch.optim.Optimizer, section: str = "train") -> None:
    """Raise RunError where the state is that of another optimizer."""
    saved, trained = state.data.get("trained"), _shapes(optimizer)
    if saved != trained:
        raise RunError(
            f"The checkpoint was made training {len(saved or ())} tensors and the recipe trains {len(trained)}, or "
            f"others; resume with the same {section}.freeze and optimizer."
        )


def restore(state: TrainingState, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
    """Put optimizer, random numbers and loss scale back; raises RunError where the optimizer is another."""
    check(state, optimizer)
    current = optimizer.state_dict()
    merged: dict[int, dict[str, Any]] = {}
    for key, value in [*state.tensors.items(), *state.data.items()]:
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            merged.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": merged, "param_groups": current["param_groups"]})
    if scaler is not None and state.data.get("scaler"):
        scaler.load_state_dict(state.data["scaler"])
    torch.set_rng_state(state.tensors["random.torch"])
    version, numbers, gauss = state.data["random.python"]
    random.setstate((version, tuple(numbers), gauss))
    algorithm, keys, *rest = state.data["random.numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"random.cuda.{device}" in state.tensors:
                torch.cuda.set_rng_state(state.tensors[f"random.cuda.{device}"], device)


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(weight.shape) for group in optimizer.param_groups for weight in group["params"]]


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), *rest]
