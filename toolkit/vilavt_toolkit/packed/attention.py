"""Attention within segments of the packed axis, with optional context keys for every inquiry group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.packed.tokens import (
    Grid,
    KeysValues,
    Layout,
    concat_ranges,
    context_ranges,
    gather_rows,
    permute_rows,
    segment_permutation,
    segment_starts,
    to_device,
)
from vilavt_toolkit.packed.varlen import VarlenPlan, attend_varlen, choose_kernel, make_varlen_plan


@dataclass(frozen=True)
class Bucket:
    """Holds the shape of segments that go in one call: their length, context keys and, for a bias, their grid."""

    segments: int
    length: int
    context: int
    grid: Grid | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """Holds how a partition is attended over: its buckets, and the order of tokens in them."""

    buckets: tuple[Bucket, ...]
    permutation: tuple[Tensor, Tensor] | None
    """[S] permutation into bucket order and its inverse; None if the tokens already stand in it."""
    context: Tensor | None
    """[sum of segments x context] rows of the context keys, bucket after bucket; None without context."""


def attend_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    partition: str,
    contexts: Sequence[KeysValues] = (),
    context_lengths: Sequence[Sequence[int]] = (),
    scale: float | None = None,
    bias: Callable[[Grid], Tensor] | None = None,
) -> Tensor:
    """Attend within each segment of `partition`, and over the contexts of the segment's group.

    q, k, v [S, H, d] -> [S, H, d]. A context holds the keys of all groups in their order, `context_lengths[c][g]` of
    them for group g in context c. `bias` returns [H, n, n] for a grid, which is added to the logits of regions with
    that grid.
    """
    if bias is not None and (partition != "region" or contexts):
        raise ValueError(
            "A bias belongs to the tokens of one region and goes with no other keys. Set `BlockSpec.no_context_reason`."
        )
    segments = layout.partitions[partition]
    lengths = tuple(tuple(each) for each in context_lengths)
    joined = None
    if any(map(any, lengths)):
        keys, values = zip(*contexts, strict=True)
        joined = _concat_rows(keys).to(k.dtype), _concat_rows(values).to(v.dtype)
    if choose_kernel(q, segments, bias is not None, bool(joined), layout.attention).kernel == "varlen":
        return attend_varlen(q, k, v, _varlen_plan(layout, partition, lengths, q.device), joined, scale)
    # All blocks of a call have the same segments, so the plan is made once for them.
    key = ("attend", partition, q.device, lengths, bias is not None)
    plan = layout.get_or_make(key, partial(make_bucket_plan, layout, partition, lengths, q.device, bias is not None))
    return attend_buckets(q, k, v, plan, joined, scale, bias)


def _concat_rows(parts: tuple[Tensor, ...]) -> Tensor:
    # One context is the usual case, and `torch.cat` would copy it.
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_inquiry(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, lengths: Sequence[int], scale: float | None = None
) -> Tensor:
    """Attend from vision tokens q [S, H, d] to the inquiry tokens k, v [T, H, d] of their group; [S, H, d].

    Group g has lengths[g] tokens. The result is zero for tokens of a group without any.
    """
    # Tokens do not see each other here, so any partition gives the same result. Groups are the fewest segments for
    # the varlen kernel; regions have the fewest distinct lengths, so the fewest buckets.
    of_words, segments = (tuple(lengths),), layout.partitions["group"]
    if choose_kernel(q, segments, False, True, layout.attention).kernel == "varlen":
        return attend_varlen(q, None, None, _varlen_plan(layout, "group", of_words, q.device, False), (k, v), scale)
    key = ("attend", "region", q.device, of_words, False)
    plan = layout.get_or_make(key, partial(make_bucket_plan, layout, "region", of_words, q.device))
    return attend_buckets(q, None, None, plan, (k.to(q.dtype), v.to(q.dtype)), scale)


def _varlen_plan(
    layout: Layout, partition: str, lengths: tuple[tuple[int, ...], ...], device: torch.device, own: bool = True
) -> VarlenPlan:
    key = ("varlen", partition, lengths, device, own)
    return layout.get_or_make(key, partial(make_varlen_plan, layout, partition, lengths, device, own))


def make_bucket_plan(
    layout: Layout,
    partition: str,
    lengths: Sequence[Sequence[int]],
    device: torch.device,
    by_grid: bool = False,
) -> AttentionPlan:
    """Bucket the segments of `partition` by tokens and context keys, with `by_grid` by grid too; on the CPU.

    Context c holds lengths[c][g] keys for group g.
    """
    segments = layout.partitions[partition]
    groups = layout.segment_groups(partition)
    context = [sum(each[group] for each in lengths) for group in groups]
    grids = layout.sizes if by_grid else [None] * len(segments)
    # Segments of equal shape make one batch. With a bias the grid counts too: 2 x 8 and 4 x 4 tokens are equally many,
    # but have different biases.
    members: dict[tuple[int, int, Grid | None], list[int]] = {}
    for index, shape in enumerate(zip(segments, context, grids, strict=True)):
        members.setdefault(shape, []).append(index)
    buckets = tuple(Bucket(len(ids), *shape) for shape, ids in members.items())
    order = [index for ids in members.values() for index in ids]
    order_and_back = segment_permutation(segments, order, device) if len(buckets) > 1 else None
    rows = None
    if any(context):
        pairs = context_ranges([groups[i] for i in order], lengths)
        rows = to_device(concat_ranges(*zip(*(pair for several in pairs for pair in several), strict=True)), device)
    return AttentionPlan(buckets, order_and_back, rows)


def attend_buckets(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    plan: AttentionPlan,
    context: KeysValues | None,
    scale: float | None = None,
    bias: Callable[[Grid], Tensor] | None = None,
) -> Tensor:
    """Attend with one scaled_dot_product_attention per bucket; without k and v over the context alone."""
    packed = [q] if k is None or v is None else [q, k, v]
    if plan.permutation is not None:
        packed = [permute_rows(t, *plan.permutation) for t in packed]
    # `split`, not slices: the gradient of every slice would be as long as the whole tensor.
    lengths = [bucket.segments * bucket.length for bucket in plan.buckets]
    parts = zip(*(t.split_with_sizes(lengths) for t in packed), strict=True)
    outputs = []
    for bucket, part, more in zip(plan.buckets, parts, _context_parts(plan, context), strict=True):
        pairs = _concat_keys_values([_split_segments(t, bucket.segments) for t in (*part[1:], *more)])
        if pairs is None:
            outputs.append(torch.zeros_like(part[0]))
            continue
        added = None if bias is None or bucket.grid is None else bias(bucket.grid).to(q.dtype)
        out = F.scaled_dot_product_attention(_split_segments(part[0], bucket.segments), *pairs, added, scale=scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    x = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return x if plan.permutation is None else permute_rows(x, plan.permutation[1], plan.permutation[0])


def _concat_keys_values(parts: Sequence[Tensor]) -> KeysValues | None:
    """Return keys and values, first those of the tokens, then those of the context; None if there are neither."""
    if not parts:
        return None
    if len(parts) == 2:
        return parts[0], parts[1]
    return torch.cat([parts[0], parts[2]], dim=2), torch.cat([parts[1], parts[3]], dim=2)


def _context_parts(plan: AttentionPlan, context: KeysValues | None) -> Sequence[tuple[Tensor, ...]]:
    """Return keys and values of the context for every bucket, () for a bucket without context."""
    if plan.context is None or context is None:
        return [()] * len(plan.buckets)
    lengths = [bucket.segments * bucket.context for bucket in plan.buckets]
    spread_out = (gather_rows(t, plan.context).split_with_sizes(lengths) for t in context)
    pairs = zip(*spread_out, strict=True)
    return [pair if bucket.context else () for pair, bucket in zip(pairs, plan.buckets, strict=True)]


def _split_segments(x: Tensor, segments: int) -> Tensor:
    # [n L, H, d] -> [n, H, L, d]
    return x.reshape(segments, -1, *x.shape[1:]).transpose(1, 2)


def inquiry_weights(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    lengths: Sequence[int],
    scale: float | None = None,
    own_keys: tuple[Tensor, str] | None = None,
) -> Tensor:
    """Return how much vision tokens q [S, H, d] attend to the inquiry tokens k [T, H, d] of their group.

    The weights [S, longest inquiry] are means over heads, and zero after the end of a shorter inquiry. `own_keys` are
    the keys [S, H, d] of the vision tokens and their partition, which then share the softmax. It loops over segments,
    so it is for explanations and not for training.
    """
    partition = "region" if own_keys is None else own_keys[1]
    segments = layout.partitions[partition]
    starts = segment_starts(lengths)
    found = []
    for start, length, group in zip(segment_starts(segments), segments, layout.segment_groups(partition), strict=True):
        keys = k[starts[group] : starts[group] + lengths[group]]
        if own_keys is not None:
            keys = torch.cat([keys, own_keys[0][start : start + length]])
        # In float32: people read these weights, and bfloat16 has two to three digits.
        logits = torch.einsum("nhd,mhd->hnm", q[start : start + length].float(), keys.float())
        weights = (logits * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1).mean(0)[:, : lengths[group]]
        # The columns of vision tokens have been cut off, so rows sum to less than 1 if those shared the softmax.
        found.append(F.pad(weights, (0, max(lengths) - lengths[group])))
    return torch.cat(found)
