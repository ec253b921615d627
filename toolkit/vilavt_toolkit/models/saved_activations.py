"""Activations that wait for the backward pass: left out and computed again, or kept in the memory of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_SMALLEST = 1 << 20
"""Bytes of the smallest tensor that is moved: copying a smaller one takes longer than it is worth."""


@contextmanager
def recompute_blocks(blocks: Sequence[nn.Module], every: int) -> Iterator[None]:
    """Keep only the inputs of every `every`-th block that runs inside the context; none for 0.

    The modules run as before, also in evaluation mode, where transformers' own checkpointing does nothing.
    """
    chosen = list(blocks)[::every] if every and torch.is_grad_enabled() else []
    # `forward` alone is replaced, not the module: hooks, those of sharding above all, run around both passes, and the
    # names of weights stay. What the backward pass calls again is the block's own forward.
    for block in chosen:
        block.forward = _checkpoint_forward(block)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def _checkpoint_forward(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        # In evaluation mode nothing is random, and reading the generators costs time.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=block.training, **kwargs)

    return run


@contextmanager
def offload_activations(model: nn.Module, is_on: bool = True) -> Iterator[None]:
    """Keep in the CPU's memory what operations inside the context save on another device for the backward pass.

    Weights stay where they are, and so do their copies in another type, which autocast keeps anyway.
    """
    if not is_on:
        yield
        return
    mover = ActivationMover(model)
    with torch.autograd.graph.saved_tensors_hooks(mover.pack, mover.unpack):
        yield


class ActivationMover:
    """Moves saved tensors to the CPU and back. On a GPU the copies are pinned, and nothing waits for them."""

    def __init__(self, model: nn.Module, smallest: int = _SMALLEST, moves_from: Sequence[str] = ("cuda",)) -> None:
        self._smallest, self._devices = smallest, frozenset(moves_from)
        # Of the storage itself, since tensors on shapes have no address.
        self._weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        shapes = {tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1}
        self._shapes = shapes | {shape[::-1] for shape in shapes}
        self.moved = 0
        """Bytes that were moved to the CPU."""

    def pack(self, saved: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        """Return what is kept of a saved tensor: itself, or its device and its copy."""
        if not self.moves(saved):
            return saved
        # The copy and what frees the tensor's memory are in the order of one stream, and so is the way back.
        copy = torch.empty(saved.shape, dtype=saved.dtype, device="cpu", pin_memory=saved.is_cuda)
        copy.copy_(saved, non_blocking=saved.is_cuda)
        self.moved += saved.nbytes
        return saved.device, copy

    def moves(self, saved: Tensor) -> bool:
        """Return True for a saved tensor that is moved."""
        return saved.device.type in self._devices and saved.nbytes >= self._smallest and not self._is_weight(saved)

    def unpack(self, packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        """Return the saved tensor."""
        if isinstance(packed, Tensor):
            return packed
        device, copy = packed
        return copy.to(device, non_blocking=copy.is_pinned())

    def _is_weight(self, saved: Tensor) -> bool:
        return saved.untyped_storage()._cdata in self._weights or tuple(saved.shape) in self._shapes
