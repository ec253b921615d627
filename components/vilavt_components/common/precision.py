"""What keeps its precision when the weights of a transformers model lose theirs."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class KeepsFrequencies(nn.Module):
    """Rotary frequencies stay float32 when weights change type, or far positions would turn by radians."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
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
