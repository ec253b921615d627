"""Attention within all segments in one call of torch's varlen kernel on CUDA, and the choice of a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import (
    Kernel,
    KeysValues,
    Layout,
    concat_ranges,
    context_ranges,
    gather_rows,
    invert_permutation,
    permute_rows,
    segment_starts,
    to_device,
)

WIDEST_HEAD = 256
"""Most channels of a head that the kernel supports."""


@dataclass(frozen=True)
class KernelChoice:
    """Holds the chosen kernel and the reason."""

    kernel: Literal["buckets", "varlen"]
    why: str


@dataclass(frozen=True)
class VarlenPlan:
    """Holds where segments and their keys start, and the order in which tokens and context rows stand."""

    starts_q: Tensor
    """[N + 1] int32, the start of the queries of N segments, and the end of the last."""
    starts_k: Tensor
    """[N + 1] int32, the same of their keys."""
    longest_q: int
    longest_k: int
    context: Tensor | None
    """[C] rows of the contexts, segment after segment; None if they already stand so, or there are none.

    The row after the last context is a key of zeros, for a segment without any key.
    """
    permutation: tuple[Tensor, Tensor] | None
    """[S + C] permutation that puts context rows after the tokens of their segment, and its inverse."""


def choose_kernel(
    q: Tensor, segments: Sequence[int], biased: bool, contexts: bool, wanted: Kernel = "auto"
) -> KernelChoice:
    """Choose the kernel for queries [S, H, d] in `segments`; raises BadConfig if `varlen` is wanted but impossible.

    Biases, and heads of odd widths, go through buckets whatever is wanted.
    """
    if biased:
        return KernelChoice("buckets", "a bias is added to the logits")
    if q.shape[-1] % 8 or q.shape[-1] > WIDEST_HEAD:
        return KernelChoice("buckets", f"heads of {q.shape[-1]} channels are no multiple of 8 up to {WIDEST_HEAD}")
    if wanted == "buckets":
        return KernelChoice("buckets", "it was asked for")
    missing = varlen_unsupported_reason(q)
    if missing and wanted == "varlen":
        raise BadConfig(f"attention 'varlen' cannot be used: {missing}. Use 'auto'.")
    if missing:
        return KernelChoice("buckets", missing)
    if wanted == "varlen":
        return KernelChoice("varlen", "it was asked for")
    # Equal segments are one bucket, so that buckets need a single call too, and nothing must be reordered.
    if len(set(segments)) == 1 and not contexts:
        return KernelChoice("buckets", "all segments are equally long, so that they are one batch")
    return KernelChoice("varlen", f"{len(segments)} segments of several lengths go in one call")


def allow_cudnn_attention(allowed: bool) -> None:
    """Let torch choose cuDNN's attention on CUDA, or not, in the whole process; `run_varlen_kernel` follows too.

    torch prefers it on GPUs of compute capability 9 and 10. There it has known faults in gradients and in generation,
    and it builds a plan for every new shape.
    """
    torch.backends.cuda.enable_cudnn_sdp(allowed)


def varlen_unsupported_reason(q: Tensor) -> str:
    """Return the reason why the kernel cannot take q on its device, or an empty text."""
    if q.device.type != "cuda":
        return f"the kernel is for CUDA, not {q.device.type}"
    if compute_dtype(q) not in (torch.float16, torch.bfloat16):
        return f"the kernel is for float16 and bfloat16, not {str(compute_dtype(q)).removeprefix('torch.')}"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the kernel needs a GPU of compute capability 8.0"
    return ""


def compute_dtype(q: Tensor) -> torch.dtype:
    """Return the number format of matrix products with q, which is that of autocast if it is on."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype


def make_varlen_plan(
    layout: Layout, partition: str, lengths: Sequence[Sequence[int]], device: torch.device, own: bool = True
) -> VarlenPlan:
    """Plan attention of the segments of `partition` over the contexts of their group and, with `own`, their tokens.

    Context c holds lengths[c][g] rows for group g, one context after another. Runs on the CPU.
    """
    segments = layout.partitions[partition]
    pairs = context_ranges(layout.segment_groups(partition), lengths)
    total = sum(map(sum, lengths))
    counts = [sum(length for _, length in several) for several in pairs]
    if not own:
        # A key of zeros with a value of zeros gives zero. Kernels disagree on a softmax over no key.
        pairs = [several if count else [(total, 1)] for several, count in zip(pairs, counts, strict=True)]
        counts = [max(1, count) for count in counts]
    rows = (
        concat_ranges(*zip(*[pair for several in pairs for pair in several], strict=True))
        if lengths or not own
        else None
    )
    keys = [length * own + count for length, count in zip(segments, counts, strict=True)]
    order_and_back = None
    if own and any(counts):
        order_and_back = _interleave_rows(segments, counts, device)
    # One context for groups in order is already laid out right, and copying it would cost more than this check.
    in_place = rows is None or (len(rows) == total and bool((rows == np.arange(len(rows))).all()))
    return VarlenPlan(
        starts_q=_cumulative_lengths(segments, device),
        starts_k=_cumulative_lengths(keys, device),
        longest_q=max(segments),
        longest_k=max(keys),
        context=None if rows is None or in_place else to_device(rows, device),
        permutation=order_and_back,
    )


def _cumulative_lengths(lengths: Sequence[int], device: torch.device) -> Tensor:
    ends = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return ends.to(device, non_blocking=True)


def _interleave_rows(segments: Sequence[int], counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the permutation, and its inverse, that puts `counts[i]` context rows after the tokens of segment i.

    Before it, all context rows stand after all tokens.
    """
    # For every segment two ranges: its tokens, then its context rows, which start after all tokens.
    context_start = sum(segments)
    starts = [
        start
        for token, row in zip(segment_starts(segments), segment_starts(counts), strict=True)
        for start in (token, context_start + row)
    ]
    order = concat_ranges(starts, [length for pair in zip(segments, counts, strict=True) for length in pair])
    return to_device(order, device), to_device(invert_permutation(order), device)


def attend_varlen(
    q: Tensor, k: Tensor | None, v: Tensor | None, plan: VarlenPlan, context: KeysValues | None, scale: float | None
) -> Tensor:
    """Attend from q [S, H, d] over k and v, if given, and over the contexts [K, H, d], in one call; [S, H, d]."""
    dtype = compute_dtype(q)
    pairs = [own if own is None else own.to(dtype) for own in (k, v)]
    more = [None, None] if context is None else [_gather_context(rows.to(dtype), plan) for rows in context]
    keys, values = (_join_keys(own, rows, plan) for own, rows in zip(pairs, more, strict=True))
    # Contiguous, since torch does not document which strides the backends of the kernel allow.
    q, keys, values = q.to(dtype).contiguous(), keys.contiguous(), values.contiguous()
    return run_varlen_kernel(q, keys, values, plan.starts_q, plan.starts_k, plan.longest_q, plan.longest_k, scale)


def _gather_context(rows: Tensor, plan: VarlenPlan) -> Tensor:
    """Return context rows [K, H, d] in the order of segments; [C, H, d]."""
    if plan.context is None:
        return rows
    # One row of zeros more, which the plan names where a segment has no key.
    return gather_rows(torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]), plan.context)


def _join_keys(own: Tensor | None, rows: Tensor | None, plan: VarlenPlan) -> Tensor:
    if own is None or rows is None or plan.permutation is None:
        found = own if own is not None and plan.permutation is None else rows
        assert found is not None
        return found
    return permute_rows(torch.cat([own, rows]), *plan.permutation)


def run_varlen_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
) -> Tensor:
    """Run torch's kernel: a query sees the keys of its segment; q [S, H, d], k and v [S', H, d] -> [S, H, d]."""
    # Imported on use: it takes some 30 ms, and only CUDA needs it.
    from torch.nn.attention.varlen import varlen_attn

    # The function has no switch for its backend, but cuDNN takes no window. One as long as every segment hides nothing.
    is_allowed: Any = torch.backends.cuda.cudnn_sdp_enabled  # untyped
    reach = -1 if is_allowed() else max(longest_q, longest_k)
    out = varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, scale=scale, window_size=(reach, reach))
    assert isinstance(out, Tensor)
    return out


def run_causal_varlen_kernel(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float | None, window: int | None = None
) -> Tensor:
    """Run torch's kernel causally; q [S, H, d], k and v [S, H', d] -> [S, H, d], H a multiple of H'.

    A query sees the keys of its segment up to its own place, the last `window` of them if that is given. `starts` are
    those of a `VarlenPlan`.
    """
    from torch.nn.attention.varlen import varlen_attn

    dtype, call = compute_dtype(q), cast("Callable[..., Any]", varlen_attn)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    # Earlier versions share keys between heads without being told.
    if k.shape[1] != q.shape[1] and "enable_gqa" in inspect.signature(call).parameters:
        options["enable_gqa"] = True
    q, k, v = (states.to(dtype).contiguous() for states in (q, k, v))
    out = call(q, k, v, starts, starts, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out
