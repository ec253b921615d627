"""Attention within segments of the packed axis, with optional context keys for every inquiry group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.contracts import Context
from vilavt_toolkit.vision.tokens import Layout, offsets, permutation, permute, runs, spread, to_device


@dataclass(frozen=True)
class Bucket:
    """Segments of one length with equally many context keys."""

    segments: int
    length: int
    context: int


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
    contexts: Sequence[Context] = (),
    inquiry_lengths: Sequence[int] = (),
    scale: float | None = None,
) -> Tensor:
    """Attend within each segment of `partition`, and over the contexts of the segment's group.

    q, k, v [S, H, d] -> [S, H, d]. Every context has one key per inquiry token, in the groups' order, as many
    as `inquiry_lengths` says.
    """
    copies = len(contexts)
    lengths = tuple(inquiry_lengths) if copies else ()
    key = ("attend", partition, q.device, lengths, copies)
    plan = layout.cached(key, partial(make_plan, layout, partition, lengths, copies, q.device))
    context = None
    if plan.context is not None:
        context = Context(
            torch.cat([c.k for c in contexts]).to(k.dtype), torch.cat([c.v for c in contexts]).to(v.dtype)
        )
    return attend_buckets(q, k, v, plan, context, scale)


def make_plan(layout: Layout, partition: str, lengths: Sequence[int], copies: int, device: torch.device) -> Plan:
    """Bucket the segments of `partition` by (tokens, context keys), on the CPU."""
    segments = layout.partitions[partition]
    groups = layout.segment_groups(partition)
    context = [copies * lengths[group] if copies else 0 for group in groups]
    members: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(zip(segments, context, strict=True)):
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


def attend_buckets(q: Tensor, k: Tensor, v: Tensor, plan: Plan, context: Context | None, scale: float | None) -> Tensor:
    """One scaled_dot_product_attention per bucket; a kernel for ragged segments would replace only this."""
    if plan.way is not None:
        q, k, v = (permute(t, *plan.way) for t in (q, k, v))
    # Split, not sliced: the gradient of every slice would be as long as the whole.
    lengths = [bucket.segments * bucket.length for bucket in plan.buckets]
    parts = zip(*(t.split_with_sizes(lengths) for t in (q, k, v)), strict=True)
    extra = _context_parts(plan, context)
    outputs = []
    for bucket, part, more in zip(plan.buckets, parts, extra, strict=True):
        queries, keys, values = (_split(t, bucket.segments) for t in part)
        if bucket.context:
            more_keys, more_values = (_split(t, bucket.segments) for t in more)
            keys, values = torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2)
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    x = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return x if plan.way is None else permute(x, plan.way[1], plan.way[0])


def _context_parts(plan: Plan, context: Context | None) -> Sequence[tuple[Tensor, ...]]:
    """Keys and values of the context for every bucket, nothing where there is none."""
    if plan.context is None or context is None:
        return [()] * len(plan.buckets)
    lengths = [bucket.segments * bucket.context for bucket in plan.buckets]
    spread_out = (spread(t, plan.context).split_with_sizes(lengths) for t in (context.k, context.v))
    return list(zip(*spread_out, strict=True))


def _split(x: Tensor, segments: int) -> Tensor:
    # [n L, H, d] -> [n, H, L, d]
    return x.reshape(segments, -1, *x.shape[1:]).transpose(1, 2)
