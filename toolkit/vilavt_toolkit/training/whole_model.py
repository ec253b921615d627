"""A whole model beside one whose weights are sharded: each process runs it alone, as often as it needs to.

In a sharded model every forward pass is a collective call. Processes that validate read other samples, and lead
dialogues of other lengths, so that they would wait for each other for ever.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vilavt_toolkit.models.meta import assign_weights
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.saving import list_weights
from vilavt_toolkit.training.sharding import gather_tensor


class WholeModel:
    """A copy of a model without weights, which get their place and values for a while."""

    def __init__(self, model: VisualChatModel, dtype: torch.dtype | None = None) -> None:
        """Copy a model that is not sharded yet. Its weights will be in `dtype`, or in their own type."""
        self._dtype = dtype
        # Deep copies take from the memo what it has. So no weight is copied, and tied ones stay tied.
        shapes = {
            id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
            for weight in model.parameters()
        }
        self.model: VisualChatModel = copy.deepcopy(model, dict(shapes))
        """Useful inside `filled` alone."""
        self._shapes = dict(self.model.named_parameters())

    @contextmanager
    def filled(self, sharded: VisualChatModel, means: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the copy have the weights of the sharded model; of those with a mean, that. All processes call this."""
        weights = {name: self._gather(value) for name, value in list_weights(sharded, means).items()}
        device = sharded.device
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        assign_weights(self.model, weights)
        # The copy has them alone.
        weights.clear()
        try:
            yield
        finally:
            assign_weights(self.model, self._shapes)

    def _gather(self, value: Tensor) -> Tensor:
        """Return the whole of a weight in the type that is wanted, or a copy of a buffer."""
        if not isinstance(value, DTensor):
            return value.detach().clone()
        is_cast = self._dtype is not None and value.is_floating_point()
        # Each process casts its share.
        return gather_tensor(cast(DTensor, value.to(self._dtype) if is_cast else value))
