"""Attention of a row in which several dialogues stand one after another: each column sees those of its own dialogue.

Dialogues that begin alike may share that beginning, their *stem*, which stands in the row once. No mask of the whole
row is ever made. On CUDA in half precision all dialogues without a stem go through one varlen kernel. Elsewhere the
model's own attention is called once for each, so that its scale, soft caps and sinks are those of a dialogue alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.language_models.layer_windows import CHUNKED, LayerWindows, hide_others
from vilavt_toolkit.packed.varlen import WIDEST_HEAD, run_causal_varlen_kernel, varlen_unsupported_reason

_PREFIX = "vilavt_documents_"
_INNER = ("eager", "sdpa")
_STRETCHED_ROPES = ("dynamic", "longrope")
_BEYOND_THE_KERNEL = ("softcap", "s_aux", "position_bias")
"""Options that families add to attention and that the varlen kernel does not know."""


@dataclass(frozen=True)
class _Documents:
    """Holds the dialogues of a row as the layers of one type see them; a chunk of a dialogue counts as one."""

    lengths: tuple[int, ...]
    window: int | None
    """Columns that a column sees, itself included; None: all before it."""
    starts: Tensor
    """[N + 1] int32 first column of each of N dialogues, and the end of the last."""
    stems: tuple[int, ...] = ()
    """Number of the dialogue whose columns each dialogue sees before its own, or -1; empty: none has any."""
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    """Masks [1, 1, l, l + before] that were needed, by lengths and number format: layers share them."""

    def mask(self, length: int, like: Tensor, before: int = 0) -> Tensor:
        """Return the mask for `length` columns behind `before` others, added to logits of the format of `like`."""
        key = (length, before, like.dtype, like.device)
        if key not in self.masks:
            columns = torch.arange(before + length, device=like.device)
            rows = columns[before:]
            made = torch.zeros(1, 1, length, before + length, dtype=like.dtype, device=like.device)
            made = made.masked_fill_(columns > rows[:, None], -torch.inf)
            if self.window is not None:
                made = hide_others(made, rows[None], columns[None], self.window)
            self.masks[key] = made
        return self.masks[key]


class DocumentRow:
    """The dialogues of a row [1, L], given to transformers' attention through every layer as `documents`."""

    # It travels as an argument, and not in a variable around the call: layers that are computed again in the backward
    # pass get their arguments again, on whichever thread that is.
    def __init__(
        self,
        lengths: Sequence[int],
        windows: LayerWindows,
        device: torch.device,
        stems: Sequence[int] | None = None,
    ) -> None:
        self._layers = windows.layers
        self._by_type: Mapping[str, _Documents] = {
            kind: _see_documents(lengths, kind, windows.sizes.get(kind), device, stems or ()) for kind in windows.types
        }

    def of_layer(self, module: Any) -> _Documents:
        """Return the dialogues as the layer of an attention module sees them."""
        if len(self._by_type) == 1:
            return next(iter(self._by_type.values()))
        return self._by_type[self._layers[module.layer_idx]]


def _see_documents(
    lengths: Sequence[int], kind: str, size: int | None, device: torch.device, stems: Sequence[int]
) -> _Documents:
    if size is not None and kind == CHUNKED:
        # A column sees nothing of earlier chunks, so that each is a dialogue of its own.
        lengths = [min(size, length - start) for length in lengths for start in range(0, length, size)]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    window = None if kind == CHUNKED else size
    return _Documents(tuple(lengths), window, ends.to(device, non_blocking=True), tuple(stems))


def no_mask(device: torch.device) -> Tensor:
    """Return a value for transformers' `attention_mask` that keeps it from making a mask of the whole row.

    A mask of four dimensions is passed on as it is. Attention would refuse one of integers if it ever used it.
    """
    return torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=device)


def inner_attention(name: str) -> str:
    """Return the attention that an implementation stands for: `sdpa` for this module's around it, others as named."""
    return name.removeprefix(_PREFIX)


def describe_unpackable(text: Any) -> str:
    """Return why a model of transformers' text configuration reads one dialogue a row, or an empty text."""
    inner = inner_attention(text._attn_implementation)
    if inner not in _INNER:
        return f"its attention {inner!r} takes one dialogue a row, use 'sdpa' or leave `attention` out"
    # Their frequencies follow the largest position of a forward, so that a long dialogue would change a short one.
    stretched = [kind for kind in _list_rope_types(text) if kind in _STRETCHED_ROPES]
    return f"its rotary positions {stretched[0]!r} follow the longest dialogue of a row" if stretched else ""


def _list_rope_types(text: Any) -> list[str]:
    rope = getattr(text, "rope_parameters", None) or {}
    # Families whose layers have different frequencies keep one mapping for each type of layer.
    several = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    return [str(each.get("rope_type", "default")) for each in several]


@cache
def register_document_attention(name: str) -> str:
    """Register an attention around transformers' `eager` or `sdpa`, and return the name to use it by.

    It computes what the inner one does if there are no `documents`, with the masks of that one.
    """
    if name.startswith(_PREFIX):
        return name
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        documents: DocumentRow | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from query [B, H, L, d] over key, value [B, H', L, d]; [B, L, H, d]."""
        inner = _find_inner(name, module)
        if documents is None:
            found: tuple[Tensor, Tensor | None] = inner(module, query, key, value, attention_mask, **options)
            return found
        seen = documents.of_layer(module)
        if name == "sdpa" and not seen.stems and _takes_varlen(query, key, value, options):
            return _attend_at_once(query, key, value, seen, options.get("scaling")), None
        return _attend_one_by_one(module, query, key, value, seen, inner, name == "eager", options), None

    # With the masks of the inner one, which padded rows without `documents` need.
    AttentionInterface.register(_PREFIX + name, attend)
    AttentionMaskInterface.register(_PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return _PREFIX + name


def _find_inner(name: str, module: nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Every family writes its own eager attention, beside the module that would call it.
    chosen: Any = ALL_ATTENTION_FUNCTIONS  # untyped
    own = sys.modules[type(module).__module__]
    found: Callable[..., Any] = own.eager_attention_forward if name == "eager" else chosen[name]
    return found


def _takes_varlen(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Return True if the kernel computes what torch's attention would, under these options."""
    width = query.shape[-1]
    fits = width % 8 == 0 and width <= WIDEST_HEAD and width == value.shape[-1]
    is_plain = not options.get("dropout") and all(options.get(name) is None for name in _BEYOND_THE_KERNEL)
    return fits and is_plain and not varlen_unsupported_reason(query)


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, seen: _Documents, scale: float | None) -> Tensor:
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    return run_causal_varlen_kernel(q, k, v, seen.starts, max(seen.lengths), scale, seen.window)[None]


def _attend_one_by_one(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: _Documents,
    inner: Callable[..., Any],
    always_masked: bool,
    options: Mapping[str, Any],
) -> Tensor:
    # One split instead of many slices: the gradient of each slice would be as large as the whole row.
    queries, keys, values = (torch.split(states, list(seen.lengths), dim=2) for states in (query, key, value))
    found = []
    for number, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        stem, before = seen.stems[number] if seen.stems else -1, 0
        if stem >= 0:
            before = seen.lengths[stem]
            k, v = torch.cat([keys[stem], k], dim=2), torch.cat([values[stem], v], dim=2)
        slides = seen.window is not None and k.shape[2] > seen.window
        # Without a mask torch's attention is causal from the first key on, and computes half as much.
        mask = seen.mask(q.shape[2], q, before) if slides or always_masked or before else None
        found.append(inner(module, q, k, v, mask, **options)[0])
    return torch.cat(found, dim=1)
