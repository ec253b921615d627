"""Attention within segments of the packed axis, with optional context keys for every inquiry group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.packed.tokens import Layout, offsets, permutation, permute, runs, spread, to_device
from vilavt_toolkit.packed.varlen import VarlenPlan, attend_varlen, choose, make_varlen_plan

Grid = tuple[int, ...]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Bucket:
    """Segments of one length with equally many context keys and, where a bias asks for it, one grid."""

    segments: int
    length: int
    context: int
    grid: Grid | None = None


@dataclass(frozen=True)
class Plan:
    """How a partition is attended over: its buckets, and the way of the tokens into them and back."""

    buckets: tuple[Bucket, ...]
    way: tuple[Tensor, Tensor] | None
    """[S] permutation into bucket order and its inverse; None where the tokens already stand so."""
    context: Tensor | None
    """[sum of segments x context] rows of the context keys, bucket after bucket."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    partition: str,
    contexts: Sequence[KeysValues] = (),
    inquiry_lengths: Sequence[int] = (),
    scale: float | None = None,
    bias: Callable[[Grid], Tensor] | None = None,
) -> Tensor:
    """Attend within each segment of `partition`, and over the contexts of the segment's group.

    q, k, v [S, H, d] -> [S, H, d]. Every context has one key per inquiry token, in the groups' order, as many
    as `inquiry_lengths` says. `bias` [H, n, n] is added to the logits of a region of its grid.
    """
    if bias is not None and (partition != "region" or contexts):
        raise ValueError("A bias belongs to the tokens of one region; it goes with no other keys.")
    copies, segments = len(contexts), layout.partitions[partition]
    lengths = tuple(inquiry_lengths) if copies else ()
    joined = None
    if any(lengths):
        keys, values = zip(*contexts, strict=True)
        joined = _joined(keys).to(k.dtype), _joined(values).to(v.dtype)
    if choose(q, segments, bias is not None, bool(joined), layout.attention).kernel == "varlen":
        return attend_varlen(q, k, v, _varlen_plan(layout, partition, lengths, copies, q.device), joined, scale)
    key = ("attend", partition, q.device, lengths, copies, bias is not None)
    plan = layout.cached(key, partial(make_plan, layout, partition, lengths, copies, q.device, bias is not None))
    return attend_buckets(q, k, v, plan, joined, scale, bias)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_inquiry(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, lengths: Sequence[int], scale: float | None = None
) -> Tensor:
    """Attend from vision tokens q [S, H, d] to the inquiry tokens k, v [T, H, d] of their group; [S, H, d].

    Group g has lengths[g] tokens; zero for tokens of a group without any.
    """
    # Tokens do not see each other here, so that any partition will do: groups are fewest, and regions have the fewest
    # distinct lengths.
    lengths, segments = tuple(lengths), layout.partitions["group"]
    if choose(q, segments, False, True, layout.attention).kernel == "varlen":
        return attend_varlen(q, None, None, _varlen_plan(layout, "group", lengths, 1, q.device, False), (k, v), scale)
    key = ("attend", "region", q.device, lengths, 1, False)
    plan = layout.cached(key, partial(make_plan, layout, "region", lengths, 1, q.device))
    return attend_buckets(q, None, None, plan, (k.to(q.dtype), v.to(q.dtype)), scale)


def _varlen_plan(
    layout: Layout, partition: str, lengths: tuple[int, ...], copies: int, device: torch.device, own: bool = True
) -> VarlenPlan:
    key = ("varlen", partition, lengths, copies, device, own)
    return layout.cached(key, partial(make_varlen_plan, layout, partition, lengths, copies, device, own))


def make_plan(
    layout: Layout,
    partition: str,
    lengths: Sequence[int],
    copies: int,
    device: torch.device,
    by_grid: bool = False,
) -> Plan:
    """Bucket the segments of `partition` by (tokens, context keys), and by grid where asked; on the CPU."""
    segments = layout.partitions[partition]
    groups = layout.segment_groups(partition)
    context = [copies * lengths[group] if copies else 0 for group in groups]
    grids = layout.sizes if by_grid else [None] * len(segments)
    members: dict[tuple[int, int, Grid | None], list[int]] = {}
    for index, shape in enumerate(zip(segments, context, grids, strict=True)):
        members.setdefault(shape, []).append(index)
    buckets = tuple(Bucket(len(ids), *shape) for shape, ids in members.items())
    order = [index for ids in members.values() for index in ids]
    way = permutation(segments, order, device) if len(buckets) > 1 else None
    rows = None
    if any(context):
        rows = to_device(_context_rows([groups[i] for i in order], lengths, copies), device)
    return Plan(buckets, way, rows)


def _context_rows(groups: Sequence[int], lengths: Sequence[int], copies: int) -> np.ndarray[Any, Any]:
    # Contexts of several modulators lie one after the other; a segment takes its group's rows of each.
    starts = offsets(lengths)
    total = sum(lengths)
    pairs = [(copy * total + starts[group], lengths[group]) for group in groups for copy in range(copies)]
    return runs([start for start, _ in pairs], [length for _, length in pairs])


def attend_buckets(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    plan: Plan,
    context: KeysValues | None,
    scale: float | None = None,
    bias: Callable[[Grid], Tensor] | None = None,
) -> Tensor:
    """One scaled_dot_product_attention per bucket; without k and v over the context alone."""
    packed = [q] if k is None or v is None else [q, k, v]
    if plan.way is not None:
        packed = [permute(t, *plan.way) for t in packed]
    # Split, not sliced: the gradient of every slice would be as long as the whole.
    lengths = [bucket.segments * bucket.length for bucket in plan.buckets]
    parts = zip(*(t.split_with_sizes(lengths) for t in packed), strict=True)
    outputs = []
    for bucket, part, more in zip(plan.buckets, parts, _context_parts(plan, context), strict=True):
        pairs = _keys_values([_split(t, bucket.segments) for t in (*part[1:], *more)])
        if pairs is None:
            outputs.append(torch.zeros_like(part[0]))
            continue
        added = None if bias is None or bucket.grid is None else bias(bucket.grid).to(q.dtype)
        out = F.scaled_dot_product_attention(_split(part[0], bucket.segments), *pairs, added, scale=scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    x = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return x if plan.way is None else permute(x, plan.way[1], plan.way[0])


def _keys_values(parts: Sequence[Tensor]) -> KeysValues | None:
    """Keys and values, each of the tokens and then of the context, of whichever there is."""
    if not parts:
        return None
    if len(parts) == 2:
        return parts[0], parts[1]
    return torch.cat([parts[0], parts[2]], dim=2), torch.cat([parts[1], parts[3]], dim=2)


def _context_parts(plan: Plan, context: KeysValues | None) -> Sequence[tuple[Tensor, ...]]:
    """Keys and values of the context for every bucket, nothing where there is none."""
    if plan.context is None or context is None:
        return [()] * len(plan.buckets)
    lengths = [bucket.segments * bucket.context for bucket in plan.buckets]
    spread_out = (spread(t, plan.context).split_with_sizes(lengths) for t in context)
    pairs = zip(*spread_out, strict=True)
    return [pair if bucket.context else () for pair, bucket in zip(pairs, plan.buckets, strict=True)]


def _split(x: Tensor, segments: int) -> Tensor:
    # [n L, H, d] -> [n, H, L, d]
    return x.reshape(segments, -1, *x.shape[1:]).transpose(1, 2)


def inquiry_weights(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    lengths: Sequence[int],
    scale: float | None = None,
    own: tuple[Tensor, str] | None = None,
) -> Tensor:
    """How much vision tokens q [S, H, d] attend to the inquiry tokens k [T, H, d] of their group, mean over heads.

    [S, longest inquiry], zero behind a shorter one's end. With `own` the keys [S, H, d] of the vision tokens within
    a partition compete. Goes segment by segment: for looking at, not for training.
    """
    partition = "region" if own is None else own[1]
    segments = layout.partitions[partition]
    starts = offsets(lengths)
    found = []
    for start, length, group in zip(offsets(segments), segments, layout.segment_groups(partition), strict=True):
        keys = k[starts[group] : starts[group] + lengths[group]]
        if own is not None:
            keys = torch.cat([keys, own[0][start : start + length]])
        logits = torch.einsum("nhd,mhd->hnm", q[start : start + length].float(), keys.float())
        weights = (logits * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1).mean(0)[:, : lengths[group]]
        found.append(F.pad(weights, (0, max(lengths) - lengths[group])))
    return torch.cat(found)
