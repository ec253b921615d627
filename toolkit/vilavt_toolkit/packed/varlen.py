"""Attention within all segments in one call of a kernel for varying lengths, on CUDA; and when it can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Kernel, Layout, inverse, offsets, permute, runs, spread, to_device

KeysValues = tuple[Tensor, Tensor]

_WIDEST_HEAD = 256


@dataclass(frozen=True)
class Choice:
    """A kernel, and why it was taken."""

    kernel: Literal["buckets", "varlen"]
    why: str


@dataclass(frozen=True)
class VarlenPlan:
    """Where segments and their keys start, and the way of tokens and context rows to them."""

    starts_q: Tensor
    """[N + 1] int32, of N segments and their end."""
    starts_k: Tensor
    """[N + 1] int32"""
    longest_q: int
    longest_k: int
    context: Tensor | None
    """[C] rows of the contexts, segment after segment; None where they stand so already, or there are none.

    The row behind the last context stands for a key of zeros: a segment without any key has this one.
    """
    way: tuple[Tensor, Tensor] | None
    """[S + C] permutation that puts context rows behind the tokens of their segment, and its inverse."""


def choose(q: Tensor, segments: Sequence[int], biased: bool, contexts: bool, wanted: Kernel = "auto") -> Choice:
    """Choose the kernel for queries [S, H, d] in `segments`; raises BadConfig where `varlen` is wanted and cannot be.

    Biases and odd heads go through buckets whatever is wanted.
    """
    if biased:
        return Choice("buckets", "a bias is added to the logits")
    if q.shape[-1] % 8 or q.shape[-1] > _WIDEST_HEAD:
        return Choice("buckets", f"heads of {q.shape[-1]} channels are no multiple of 8 up to {_WIDEST_HEAD}")
    if wanted == "buckets":
        return Choice("buckets", "it was asked for")
    missing = unsupported(q)
    if missing and wanted == "varlen":
        raise BadConfig(f"attention 'varlen' cannot be used: {missing}; use 'auto'.")
    if missing:
        return Choice("buckets", missing)
    if wanted == "varlen":
        return Choice("varlen", "it was asked for")
    if len(set(segments)) == 1 and not contexts:
        return Choice("buckets", "all segments are equally long, so that they are one batch")
    return Choice("varlen", f"{len(segments)} segments of several lengths go in one call")


def unsupported(q: Tensor) -> str:
    """Why the kernel does not take q as it is on its device; empty where it does."""
    if q.device.type != "cuda":
        return f"the kernel is for CUDA, not {q.device.type}"
    if compute_dtype(q) not in (torch.float16, torch.bfloat16):
        return f"the kernel is for float16 and bfloat16, not {str(compute_dtype(q)).removeprefix('torch.')}"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the kernel needs a GPU of compute capability 8.0"
    return ""


def compute_dtype(q: Tensor) -> torch.dtype:
    """The number format of matrix products with q, under autocast its own."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype


def make_varlen_plan(
    layout: Layout, partition: str, lengths: Sequence[int], copies: int, device: torch.device, own: bool = True
) -> VarlenPlan:
    """Plan attention of the segments of `partition` over their own tokens, where `own`, and their group's contexts.

    Each of `copies` contexts holds lengths[g] rows for group g, one context after the other; on the CPU.
    """
    segments = layout.partitions[partition]
    groups = layout.segment_groups(partition)
    starts, total = offsets(lengths), sum(lengths)
    pairs = [[(copy * total + starts[group], lengths[group]) for copy in range(copies)] for group in groups]
    counts = [sum(length for _, length in several) for several in pairs]
    if not own:
        # A key of zeros with a value of zeros, since a softmax over nothing is not what kernels agree on.
        pairs = [several if count else [(copies * total, 1)] for several, count in zip(pairs, counts, strict=True)]
        counts = [max(1, count) for count in counts]
    rows = runs(*zip(*[pair for several in pairs for pair in several], strict=True)) if copies or not own else None
    keys = [length * own + count for length, count in zip(segments, counts, strict=True)]
    way = None
    if own and any(counts):
        way = _behind(segments, counts, device)
    in_place = rows is None or (len(rows) == copies * total and bool((rows == np.arange(len(rows))).all()))
    return VarlenPlan(
        starts_q=_starts(segments, device),
        starts_k=_starts(keys, device),
        longest_q=max(segments),
        longest_k=max(keys),
        context=None if rows is None or in_place else to_device(rows, device),
        way=way,
    )


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    ends = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return ends.to(device, non_blocking=True)


def _behind(segments: Sequence[int], counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """What `permute` needs to put segment i's `counts[i]` rows, of those behind all tokens, behind its tokens."""
    behind = sum(segments)
    starts = [
        start for token, row in zip(offsets(segments), offsets(counts), strict=True) for start in (token, behind + row)
    ]
    order = runs(starts, [length for pair in zip(segments, counts, strict=True) for length in pair])
    return to_device(order, device), to_device(inverse(order), device)


def attend_varlen(
    q: Tensor, k: Tensor | None, v: Tensor | None, plan: VarlenPlan, context: KeysValues | None, scale: float | None
) -> Tensor:
    """Attend from q [S, H, d] over the own k, v, where given, and the contexts [K, H, d] in one call; [S, H, d]."""
    dtype = compute_dtype(q)
    pairs = [own if own is None else own.to(dtype) for own in (k, v)]
    more = [None, None] if context is None else [_in_segments(rows.to(dtype), plan) for rows in context]
    keys, values = (_joined(own, rows, plan) for own, rows in zip(pairs, more, strict=True))
    # Without gaps: which gaps torch's backends of the kernel allow is written nowhere.
    q, keys, values = q.to(dtype).contiguous(), keys.contiguous(), values.contiguous()
    return kernel(q, keys, values, plan.starts_q, plan.starts_k, plan.longest_q, plan.longest_k, scale)


def _in_segments(rows: Tensor, plan: VarlenPlan) -> Tensor:
    """Context rows [K, H, d], segment after segment; [C, H, d]."""
    if plan.context is None:
        return rows
    return spread(torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]), plan.context)


def _joined(own: Tensor | None, rows: Tensor | None, plan: VarlenPlan) -> Tensor:
    if own is None or rows is None or plan.way is None:
        found = own if own is not None and plan.way is None else rows
        assert found is not None
        return found
    return permute(torch.cat([own, rows]), *plan.way)


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
) -> Tensor:
    """torch's kernel: query i sees the keys of its segment; q [S, H, d], k and v [S', H, d] -> [S, H, d]."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, scale=scale)
    assert isinstance(out, Tensor)
    return out
