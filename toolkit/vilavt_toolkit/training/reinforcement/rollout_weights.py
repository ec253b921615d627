"""The weights of rollouts: the policy's, in bfloat16 where training computes in it by autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vilavt_toolkit.models.model import VisualChatModel


@contextmanager
def rollout_weights(model: VisualChatModel) -> Iterator[None]:
    """Hold the model in bfloat16 in place of autocast to it, and give every weight its own value back at the end.

    Autocast would launch a cast for every product of every token, and rule out CUDA graphs. A checkpoint of the run is
    evaluated in bfloat16 too. Gradients are dropped: the next step empties them in any case. Without autocast, and
    under one to float16, whose range is too small for a residual stream, nothing changes.
    """
    kind = model.device.type
    if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) is not torch.bfloat16:
        yield
        return
    model.zero_grad()
    # `Module.to` and no cast of our own, because parts know what must stay in float32.
    with restored_weights(model), torch.autocast(kind, enabled=False):
        model.to(torch.bfloat16)
        yield


@contextmanager
def restored_weights(model: VisualChatModel) -> Iterator[None]:
    """Give every weight and buffer its own tensor back at the end of this block, in which `Module.to` is called."""
    # Parameters stay the same objects, which the optimizer knows, and get other data. Buffers become other tensors.
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    modules = list(model.modules())
    buffers = [(module, name, held) for module in modules for name, held in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for module, name, held in buffers:
            setattr(module, name, held)
