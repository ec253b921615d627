"""Models built without their weights, and weights put into them: no parameter is drawn, or in memory, twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vilavt_toolkit.errors import InputError, VilavtError

T = TypeVar("T")
_ACTIVE: ContextVar[bool] = ContextVar("weightless", default=False)
_register = nn.Module.register_parameter


def _register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is not None and _ACTIVE.get() and not parameter.is_meta:
        parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    _register(module, name, parameter)


@contextmanager
def weightless() -> Iterator[None]:
    """Let modules built inside have their parameters on the meta device, and their buffers where they would be.

    Unlike `torch.device("meta")`, which loses what modules compute for themselves, such as rotary frequencies.
    """
    outer, token = nn.Module.register_parameter, _ACTIVE.set(True)
    nn.Module.register_parameter = _register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = outer  # type: ignore[method-assign]
        _ACTIVE.reset(token)


def built_without_weights(make: Callable[[], T]) -> T:
    """What `make` builds, on the meta device where it can be; a few parts compute with weights as they are built."""
    try:
        with weightless():
            return make()
    except (RuntimeError, VilavtError):
        return make()  # what is really wrong is told now


def assign(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Make `weights` the parameters and buffers of those names, without a copy; the names of those not given.

    Names are those of the state dict, and shapes those of the model. Shared parameters stay shared, by whichever of
    their names they are given.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    named: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
                named[f"{prefix}.{name}" if prefix else name] = parameter
    given = {id(named[name]) for name in weights if name in named}
    missing = [name for name in model.state_dict() if name not in weights and id(named.get(name)) not in given]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, value in weights.items():
        if name not in named:
            buffers[name].copy_(value)
            continue
        made = nn.Parameter(value, requires_grad=named[name].requires_grad and value.is_floating_point())
        for module, own in places[id(named[name])]:
            module._parameters[own] = made
    return missing


def without_weights(model: nn.Module) -> list[str]:
    """The names of parameters that are still on the meta device."""
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def differs(value: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether a tensor has to be converted to be of `dtype`; None: any will do."""
    return dtype is not None and value.is_floating_point() and value.dtype != dtype


def converted(file: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    """A tensor of a safetensors file in another type; the file is mapped anew for it, or both would stay in memory."""
    with safe_open(str(file), "pt") as stored:
        value: Tensor = stored.get_tensor(name).to(dtype)
    return value


def listed_in_short(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def as_dtype(value: Any) -> torch.dtype | None:
    """The type that `bfloat16`, `torch.bfloat16` or the type itself names; None for None. Raises InputError."""
    if value is None:
        return None
    found: Any = getattr(torch, str(value).removeprefix("torch."), None)
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"dtype {value!r} is no type of weights; give float32, bfloat16 or float16.")
    chosen: torch.dtype = found
    return chosen
