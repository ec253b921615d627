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
from vilavt_toolkit.training.world import World


def capture_state(
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    stage: TrainingState | None = None,
    world: World | None = None,
) -> TrainingState:
    """Return everything that `restore_state` needs, together with the stage's own state.

    All processes of `world` call this; the first one's result has the random numbers of all.
    """
    tensors, data = _capture_random_state(world or World())
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


def restore_state(
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    section: str,
    scaler: Any = None,
    world: World | None = None,
) -> None:
    """Put optimizer, loss scale and random numbers back; raises RunError if the optimizer is another.

    A process that the saved run did not have keeps its random numbers.
    """
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
    _restore_random_state(state, _random_prefix((world or World()).rank))


def seed_rank(seed: int, world: World, step: int) -> None:
    """Give every process but the first random numbers of its own; all were seeded alike, for equal new weights."""
    if not world.is_first:
        numbers = np.random.SeedSequence([seed, step, world.rank]).generate_state(3)
        torch.manual_seed(int(numbers[0]))
        random.seed(int(numbers[1]))
        np.random.seed(int(numbers[2]))


def _capture_random_state(world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and plain data: the random numbers of all processes, each with its own prefix."""
    own: dict[str, Tensor] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        own |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors: dict[str, Tensor] = {}
    data: dict[str, Any] = {}
    for rank, (held, python, numbers) in enumerate(world.gather((own, random.getstate(), _numpy_state()))):
        prefix = _random_prefix(rank)
        tensors |= {f"{prefix}.{name}": value for name, value in held.items()}
        data |= {f"{prefix}.python": python, f"{prefix}.numpy": numbers}
    return tensors, data


def _random_prefix(rank: int) -> str:
    # The first one's is that of a run of one process.
    return f"random.rank{rank}" if rank else "random"


def _restore_random_state(state: TrainingState, prefix: str) -> None:
    if f"{prefix}.torch" not in state.tensors and prefix != _random_prefix(0):
        return
    torch.set_rng_state(state.tensors[f"{prefix}.torch"])
    # JSON has made lists of the tuples and arrays that these functions want.
    version, numbers, gauss = state.data[f"{prefix}.python"]
    random.setstate((version, tuple(numbers), gauss))
    algorithm, keys, *rest = state.data[f"{prefix}.numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"{prefix}.cuda.{device}" in state.tensors:
                torch.cuda.set_rng_state(state.tensors[f"{prefix}.cuda.{device}"], device)


def _trained_shapes(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(weight.shape) for group in optimizer.param_groups for weight in group["params"]]


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), *rest]
