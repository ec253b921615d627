"""Models built on the meta device, and the weights put into them: no parameter is drawn, or in memory, twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vilavt_toolkit.errors import InputError, VilavtError

T = TypeVar("T")
_is_active: ContextVar[bool] = ContextVar("meta_parameters", default=False)
"""True inside `meta_parameters`. A new thread starts from the default, so every thread decides for itself."""
_torch_register = nn.Module.register_parameter
_patch_lock = threading.Lock()
_patch_users = 0
"""Number of threads and nested blocks that are inside `meta_parameters` now."""


def _register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Register a parameter, moved to the meta device if this thread is inside `meta_parameters`."""
    if parameter is not None and _is_active.get() and not parameter.is_meta:
        parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    _torch_register(module, name, parameter)


@contextmanager
def _patched_registration() -> Iterator[None]:
    """Let torch register parameters through `_register_on_meta` until the last block of any thread is left."""
    global _patch_users
    with _patch_lock:
        _patch_users += 1
        nn.Module.register_parameter = _register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        # torch has one `register_parameter` for all threads. Whoever leaves first must not take the patch away from
        # the others, so only the last one does.
        with _patch_lock:
            _patch_users -= 1
            if not _patch_users:
                nn.Module.register_parameter = _torch_register  # type: ignore[method-assign]


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Build the parameters of modules on the meta device in this block, and their buffers on the usual device.

    `torch.device("meta")` would also lose what modules compute for themselves, such as rotary frequencies. The block
    acts on the current thread alone. Another thread may build a model with real weights at the same time.
    """
    token = _is_active.set(True)
    try:
        with _patched_registration():
            yield
    finally:
        _is_active.reset(token)


def build_on_meta(build: Callable[[], T]) -> T:
    """Return what `build` makes, its parameters on the meta device unless it computes with them while it is built."""
    try:
        with meta_parameters():
            return build()
    except (RuntimeError, VilavtError):
        # Either a module computed with its weights, which works now, or something is wrong, and the error of a real
        # build says what.
        return build()


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Make `weights` the parameters and buffers of those names, without a copy; return the names that are missing.

    Names are those of the state dict, and shapes are those of the model. Parameters that share their weights stay
    shared, whichever of their names is given.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    parameters: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
                parameters[f"{prefix}.{name}" if prefix else name] = parameter
    given = {id(parameters[name]) for name in weights if name in parameters}
    missing = [name for name in model.state_dict() if name not in weights and id(parameters.get(name)) not in given]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, value in weights.items():
        if name not in parameters:
            # A buffer has a real device already, and modules may hold views of it.
            buffers[name].copy_(value)
            continue
        needs_grad = parameters[name].requires_grad and value.is_floating_point()
        filled = nn.Parameter(value, requires_grad=needs_grad)
        # Every module that shares the parameter gets the same new one, or they would stop sharing it.
        for module, own_name in places[id(parameters[name])]:
            module._parameters[own_name] = filled
    return missing


def unfilled_parameters(model: nn.Module) -> list[str]:
    """Return the names of parameters that are still on the meta device."""
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def copy_weights(module: nn.Module) -> None:
    """Give every parameter memory of its own, in place of a mapped file.

    What is mapped changes with its file: an overwrite in place changes the weights, and a truncation ends the process.
    """
    # One after another, so that a model needs no more memory than it has weights. Shared parameters stay shared.
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def needs_cast(value: Tensor, dtype: torch.dtype | None) -> bool:
    """Return True if a floating-point tensor is not of `dtype`; None accepts every type."""
    return dtype is not None and value.is_floating_point() and value.dtype != dtype


def read_as(file: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    """Read a tensor of a safetensors file in another type."""
    # The file is mapped again for every tensor. With one mapping the pages of all originals would stay in memory
    # beside the converted copies.
    with safe_open(str(file), "pt") as stored:
        value: Tensor = stored.get_tensor(name).to(dtype)
    return value


def parse_dtype(value: Any) -> torch.dtype | None:
    """Return the type that `bfloat16`, `torch.bfloat16` or the type itself names; None for None. Raises InputError."""
    if value is None:
        return None
    found: Any = getattr(torch, str(value).removeprefix("torch."), None)
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"dtype {value!r} is no type of weights. Give float32, bfloat16 or float16.")
    chosen: torch.dtype = found
    return chosen
