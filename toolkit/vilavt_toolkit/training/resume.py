"""The state of training beyond the weights, as tensors and plain data: optimizer, random numbers, loss scale.

Tensors go into resume.safetensors, the rest into resume.json, so that a checkpoint holds nothing pickled.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.errors import RunError


def capture_state(
    optimizer: torch.optim.Optimizer, scaler: Any = None, stage: TrainingState | None = None
) -> TrainingState:
    """Return everything that `restore_state` needs, together with the stage's own state."""
    tensors: dict[str, Tensor] = {"random.torch": torch.get_rng_state()}
    data: dict[str, Any] = {"random.python": random.getstate(), "random.numpy": _numpy_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random.cuda.{index}"] = state
    # Torch numbers the parameters in the order of the groups. That order is the model's, which a recipe fixes.
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                data[f"optimizer.{index}.{key}"] = value
    data["trained"] = _trained_shapes(optimizer)
    data["scaler"] = scaler.state_dict() if scaler is not None else None
    if stage is not None:
        tensors, data = tensors | stage.tensors, data | stage.data
    return TrainingState(tensors, data)


def check_state(state: TrainingState, optimizer: torch.optim.Optimizer, section: str) -> None:
    """Raise RunError if the state is that of an optimizer over other tensors; `section` is the recipe's."""
    saved, trained = state.data.get("trained"), _trained_shapes(optimizer)
    if saved != trained:
        count = len(saved) if isinstance(saved, list) else "no"
        raise RunError(
            f"The checkpoint was made training {count} tensors and the recipe trains {len(trained)}, or "
            f"others. Resume with the same {section}.freeze and {section}.optimizer."
        )


def restore_state(state: TrainingState, optimizer: torch.optim.Optimizer, section: str, scaler: Any = None) -> None:
    """Put optimizer, loss scale and random numbers back; raises RunError if the optimizer is another."""
    check_state(state, optimizer, section)
    # Another device copies by itself. On the CPU the optimizer would go on with what is mapped from the file.
    on_cpu = any(weight.device.type == "cpu" for group in optimizer.param_groups for weight in group["params"])
    merged: dict[int, dict[str, Any]] = {}
    for key, value in [*state.tensors.items(), *state.data.items()]:
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            merged.setdefault(int(index), {})[name] = value.clone() if on_cpu and isinstance(value, Tensor) else value
    # The groups' settings are the recipe's, which may have changed: a resumed run takes a new learning rate.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": merged, "param_groups": groups})
    if scaler is not None and state.data.get("scaler"):
        scaler.load_state_dict(state.data["scaler"])
    _restore_random_state(state)


def _restore_random_state(state: TrainingState) -> None:
    torch.set_rng_state(state.tensors["random.torch"])
    # JSON has made lists of the tuples and arrays that these functions want.
    version, numbers, gauss = state.data["random.python"]
    random.setstate((version, tuple(numbers), gauss))
    algorithm, keys, *rest = state.data["random.numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"random.cuda.{device}" in state.tensors:
                torch.cuda.set_rng_state(state.tensors[f"random.cuda.{device}"], device)


def _trained_shapes(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(weight.shape) for group in optimizer.param_groups for weight in group["params"]]


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), *rest]
