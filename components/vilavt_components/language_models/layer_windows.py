"""The layers of a language model that see a window or a chunk of the text, and their attention masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SLIDING, CHUNKED = "sliding_attention", "chunked_attention"
# Types of layers in transformers that keep one key and value for each token, or nothing.
_WITH_KEYS = ("full_attention", _SLIDING, CHUNKED, "moe", "mlp")


@dataclass(frozen=True)
class LayerWindows:
    """The types of a model's layers, and how much of the text the layers of a type see."""

    types: tuple[str, ...]
    """The types that occur, as transformers names them."""
    sizes: Mapping[str, int]
    """Tokens in the window or chunk of every type that has one."""
    layers: tuple[str, ...] = ()
    """The type of every layer; empty if all are of one."""

    def applies_to(self, columns: int) -> bool:
        """Return True if some layer does not see all of so many columns."""
        return any(columns > size for size in self.sizes.values())

    def split_mask(self, full: Any, mask: Tensor, new: Tensor, seen: Tensor) -> Any:
        """Return the masks by type of layer: `full`, and `mask` [B, 1, L, C] without what is out of a window.

        `full` may be masks by type already. `mask` is added to attention logits, and lets a column see those before it.
        `new` [B, L] and `seen` [B, C] (or [1, C]) number the columns of a row as if it had no padding. Layers of one
        type get a single mask.
        """
        found = dict(full) if isinstance(full, dict) else dict.fromkeys(self.types, full)
        for kind, size in self.sizes.items():
            found[kind] = hide_others(mask, new, seen, size, kind)
        # Families that have one type of layer take no masks by type.
        return found if len(found) > 1 else next(iter(found.values()))


def read_layer_windows(text: Any) -> LayerWindows:
    """Return the windows of transformers' text configuration; raises ValueError for layers that keep other states."""
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    layers = tuple(getattr(text, "layer_types", None) or ())
    types = tuple(dict.fromkeys(layers))
    if not types:
        # Without types all layers are alike: in Mistral's first models all of them slide.
        types = (_SLIDING if window else CHUNKED if chunk else "full_attention",)
    if other := [kind for kind in types if kind not in _WITH_KEYS]:
        # Such a state cannot go back when a turn is rewritten, and is not that of a row alone.
        raise ValueError(f"its layers of the type {other[0]!r} keep another state than keys and values")
    given = {_SLIDING: window, CHUNKED: chunk}
    return LayerWindows(types, {kind: int(size) for kind in types if (size := given.get(kind))}, layers)


def number_columns(mask: Tensor) -> Tensor:
    """Return the number of every real column among those of its row, under a mask [B, L]; [B, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, L, L] that is added to attention logits: columns see the real ones up to themselves."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    visible = mask[:, None, :] & (columns <= columns[:, None])
    # Padding sees itself, because attention to nothing gives NaN.
    visible = visible | (columns == columns[:, None])
    added = torch.zeros(visible.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(~visible, -torch.inf)[:, None]


def hide_others(mask: Tensor, new: Tensor, seen: Tensor, size: int, kind: str = _SLIDING) -> Tensor:
    """Return a mask without what is out of the window or chunk of `size`; arguments as those of `split_mask`."""
    rows, columns = new[:, None, :, None].int(), seen[:, None, None, :].int()
    hidden = rows - columns >= size if kind == _SLIDING else rows // size != columns // size
    return mask.masked_fill(hidden, -torch.inf)
