"""The state of training beyond the weights, as tensors and plain data: optimizer, random numbers, loss scale.

Tensors go into resume.safetensors, the rest into resume.json, so that a checkpoint holds nothing pickled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.sharding import shard_like
from vilavt_toolkit.training.world import World

WeightNames = Mapping[int, str]
"""The names of weights by their `id`."""


def capture_state(
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    stage: TrainingState | None = None,
    world: World | None = None,
    names: WeightNames | None = None,
) -> TrainingState:
    """Return everything that `restore_state` needs, together with the stage's own state.

    All processes of `world` call this. The first one's result has the random numbers of all. With sharded weights every
    process gets the same names, and its shards of the optimizer's state. `names` are those of the trained weights;
    without, they are numbered.
    """
    world = world or World()
    is_sharded = any(isinstance(weight, DTensor) for group in optimizer.param_groups for weight in group["params"])
    tensors, data = _capture_random_state(world)
    listed = _list_names(optimizer, names)
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if not isinstance(value, Tensor):
                data[f"optimizer.{listed[index]}.{key}"] = value
                continue
            # Shards are gathered when they are written, one at a time.
            if isinstance(value, DTensor):
                tensors[f"optimizer.{listed[index]}.{key}"] = value.detach()
            elif is_sharded or world.is_first:
                tensors[f"optimizer.{listed[index]}.{key}"] = value.detach().contiguous()
    data["trained"] = dict(zip(listed, _trained_shapes(optimizer), strict=True))
    data["scaler"] = scaler.state_dict() if scaler is not None else None
    if stage is not None:
        tensors, data = tensors | stage.tensors, data | stage.data
    return TrainingState(tensors, data)


def check_state(
    state: TrainingState, optimizer: torch.optim.Optimizer, section: str, names: WeightNames | None = None
) -> None:
    """Raise RunError if the state is that of an optimizer over other tensors; `section` is the recipe's."""
    saved, trained = state.data.get("trained"), _trained_shapes(optimizer)
    # Checkpoints of earlier versions number the weights in the order of the optimizer's groups.
    known = saved == trained if isinstance(saved, list) else saved == _name_shapes(optimizer, names)
    if not known:
        count = len(saved) if isinstance(saved, list | dict) else "no"
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
    names: WeightNames | None = None,
) -> None:
    """Put optimizer, loss scale and random numbers back; raises RunError if the optimizer is another.

    A process that the saved run did not have keeps its random numbers. `names` are those of `capture_state`.
    """
    check_state(state, optimizer, section, names)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    places = {name: place for place, name in enumerate(_list_names(optimizer, names))}
    # Another device copies by itself. On the CPU the optimizer would go on with what is mapped from the file.
    on_cpu = any(weight.device.type == "cpu" for group in optimizer.param_groups for weight in group["params"])
    merged: dict[int, dict[str, Any]] = {}
    for key, value in [*state.tensors.items(), *state.data.items()]:
        if key.startswith("optimizer."):
            weight_name, field = key.removeprefix("optimizer.").rsplit(".", 1)
            place = places[weight_name] if weight_name in places else int(weight_name)
            if isinstance(value, Tensor):
                whole, value = value, shard_like(value, weights[place])
                value = value.clone() if on_cpu and value is whole else value
            merged.setdefault(place, {})[field] = value
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


def _list_names(optimizer: torch.optim.Optimizer, names: WeightNames | None) -> list[str]:
    """Return the names of the weights in the order in which torch numbers them, which is that of the groups."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [str(place) if names is None else names[id(weight)] for place, weight in enumerate(weights)]


def _name_shapes(optimizer: torch.optim.Optimizer, names: WeightNames | None) -> dict[str, list[int]]:
    return dict(zip(_list_names(optimizer, names), _trained_shapes(optimizer), strict=True))


def _trained_shapes(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(weight.shape) for group in optimizer.param_groups for weight in group["params"]]


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), *rest]
