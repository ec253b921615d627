"""Parts of transformers models that must stay in float32 when the weights change type."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class Float32RotaryFrequencies(nn.Module):
    """A module whose rotary frequencies (buffers `inv_freq`) stay in float32 when its weights change type.

    A position is multiplied by its frequency: rounded to bfloat16, position 10,000 would turn by whole radians.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `to`, `half`, `bfloat16` and `cuda` all go through `_apply`: this is the only place that sees all of them.
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name.endswith("inv_freq") and buffer.dtype == torch.float32 and not buffer.is_meta
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in kept:
            setattr(module, name, buffer.to(getattr(module, name).device))
        return self
