"""Running torch on shapes: numbers in floating point have no memory, whole numbers and masks are computed for real.

A model's numbers decide nothing about its memory. Token ids, positions and masks do: how rows are padded, which columns
a head is applied to, how many segments there are. They are small, so that they are computed as in a real step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOST_REAL_NUMBERS = 1 << 26
"""Whole numbers of a tensor that is still computed for real. A mask of a long row against itself is not."""
_DEVICE, _LAYOUT = torch.ops.prim.device.default, torch.ops.prim.layout.default
_SCALAR = torch.ops.aten._local_scalar_dense.default
_DEPENDS_ON_DATA = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class Observer(Protocol):
    """Sees every operation of a run on shapes."""

    def observe(
        self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], inputs: list[Tensor], result: Any
    ) -> None:
        """Take note of an operation that has been run; `inputs` are the tensors in its arguments and options."""

    def observe_wait(self, tensor: Tensor) -> None:
        """Take note that the program asked for a number of `tensor`, for which a GPU would be waited for."""


class ShapeMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatches operations above a `FakeTensorMode`: real ones for whole numbers, fake ones for all others."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and show it to the observer."""
        options = kwargs or {}
        # Asked for by Python code several times for every operation.
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is _DEVICE or func is _LAYOUT:
            return func(*args, **options)
        # A sharded tensor runs its operation on this rank's part, and that is seen then.
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if func is _SCALAR:
            self._observer.observe_wait(args[0])
            return _answer_scalar(args[0])
        result = _run_operation(func, tensors, args, options)
        self._observer.observe(func, args, options, tensors, result)
        return result


def _run_operation(func: Any, tensors: Sequence[Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run an operation for real if it makes few whole numbers out of whole numbers, and else on shapes."""
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return func(*args, **options)
    if any(tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta for tensor in tensors):
        return func(*args, **options)
    # What changes its input, or whose size depends on its input, has no fake form.
    if tensors and (func._schema.is_mutable or any(tag in func.tags for tag in _DEPENDS_ON_DATA)):
        return _run_for_real(func, args, options)
    result = func(*args, **options)
    found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    is_small = sum(tensor.numel() for tensor in found) <= _MOST_REAL_NUMBERS
    if found and is_small and not any(tensor.is_floating_point() or tensor.is_complex() for tensor in found):
        return _run_for_real(func, args, options)
    return result


def _run_for_real(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    with torch._C._DisableTorchDispatch():
        return func(*args, **options)


def _answer_scalar(tensor: Tensor) -> bool | int | float:
    """Return the number of a real tensor; of a fake one True, 1 or 1.0: a finite loss, a mask without padding."""
    if not isinstance(tensor, FakeTensor):
        found: bool | int | float = _run_for_real(_SCALAR, (tensor,), {})
        return found
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


@contextmanager
def run_on_shapes(observer: Observer) -> Iterator[None]:
    """Run what is inside on shapes, on the device "cpu"."""
    # Lightning and peft move and convert modules, which torch's own method refuses to do with fake tensors.
    torch_apply = nn.Module._apply
    nn.Module._apply = _apply_to_tensors  # type: ignore[method-assign]
    try:
        # Real tensors may meet fake ones: whole numbers are indices of what has no memory.
        with FakeTensorMode(allow_non_fake_inputs=True), ShapeMode(observer):
            yield
    finally:
        nn.Module._apply = torch_apply  # type: ignore[method-assign]


def _apply_to_tensors(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    return replace_tensors(module, convert)


def forget_values(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace the parameters and buffers of a module, which may be on the meta device, by fake ones on the CPU.

    Called inside `run_on_shapes`. Shared parameters stay shared, and buffers of whole numbers keep their values. With
    `dtype` everything in floating point gets that type.
    """

    def forget(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() and not tensor.is_meta:
            return tensor
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=kind, device="cpu")

    replace_tensors(module, forget)


def replace_tensors(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Replace the parameters and buffers of a module as `Module._apply` does, which refuses fake tensors."""
    replaced: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, weight in each._parameters.items():
            if weight is None:
                continue
            if id(weight) not in replaced:
                replaced[id(weight)] = _replace_weight(weight, convert(weight.detach()))
            each._parameters[name] = replaced[id(weight)]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = convert(buffer)
    return module


def _replace_weight(weight: nn.Parameter, value: Tensor) -> nn.Parameter:
    # An optimizer knows the parameter, so that it stays the same object where it has been a fake one before.
    if isinstance(weight, FakeTensor):
        weight.data = value
        return weight
    return nn.Parameter(value, weight.requires_grad)


def list_tensors(*values: Any) -> list[Tensor]:
    """Return the tensors in nested values; of a sharded tensor the part of this rank."""
    found = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in found]
