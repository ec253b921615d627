"""Activations that wait for the backward pass outside of the device, on shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.saved_activations import ActivationMover
from vilavt_toolkit.planning.memory import MemoryTracker


class ShapeMover(ActivationMover):
    """Forgets saved tensors of a run on shapes, as a GPU does that has moved them, and makes them anew."""

    def __init__(self, model: VisualChatModel, memory: MemoryTracker) -> None:
        super().__init__(model, moves_from=("cpu",))
        self._memory = memory

    def pack(self, saved: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        """Return a saved tensor that stays, or its device and a copy that is not in the device's memory."""
        if not isinstance(saved, FakeTensor) or not self.moves(saved):
            return saved
        self.moved += saved.nbytes
        with self._memory.paused():
            return saved.device, torch.empty_like(saved, device="meta", memory_format=torch.contiguous_format)

    def unpack(self, packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        """Return the saved tensor."""
        if isinstance(packed, Tensor):
            return packed
        device, copy = packed
        return torch.empty(copy.shape, dtype=copy.dtype, device=device)


def offload_on_shapes(model: VisualChatModel, memory: MemoryTracker) -> None:
    """Let a model on shapes, which is on the CPU there, move activations away as it does on a GPU."""
    run_layers: Callable[..., Tensor] = model.run_layers
    # Of two pairs of hooks torch calls the inner one alone.
    model.offloads_activations = False

    def run_layers_and_move(batch: Any) -> Tensor:
        mover = ShapeMover(model, memory)
        with torch.autograd.graph.saved_tensors_hooks(mover.pack, mover.unpack):
            return run_layers(batch)

    model.run_layers = run_layers_and_move  # type: ignore[method-assign]
