"""Packed vision tokens, and the layout that says which of them belong together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
Grid = tuple[int, ...]
"""Tokens along each axis of a region, (h, w) for images."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values, [N, H, d] each."""
Kernel = Literal["auto", "buckets", "varlen"]
"""Kernel of attention within segments: one call per length, one call for all, or as `varlen.choose_kernel` says."""
Partitions = Callable[[Sequence[Grid]], Mapping[str, Sequence[int]]]
"""Returns segment lengths by partition, for regions with these grids in packed order."""


def to_device(values: Sequence[int] | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return integers as a tensor on `device`; the copy does not wait for the device."""
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device, non_blocking=True)


def concat_ranges(starts: Sequence[int], lengths: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the ranges [start, start + length), one after another, on the CPU."""
    sizes = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    # One arange, each range shifted to its own start: a Python loop over thousands of windows would be slow.
    return np.arange(total) + np.repeat(np.asarray(starts, dtype=np.int64) - ends + sizes, sizes)


def segment_starts(lengths: Sequence[int]) -> list[int]:
    """Return the index at which each packed segment starts."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]).tolist() if len(lengths) else []


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` [N] of values [M, ...], in any order and any number of times; [N, ...].

    The gradient sums in a fixed order on every device, unlike that of `values[index]`.
    """
    if values.dim() == 2:
        return F.embedding(index, values)
    return F.embedding(index, values.flatten(1)).view(-1, *values.shape[1:])


def context_ranges(groups: Sequence[int], lengths: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """Return for segments of these groups the rows of their context keys, as (start, number) in every context.

    Context c holds lengths[c][g] rows for group g, and the contexts lie one after another.
    """
    starts = [segment_starts(each) for each in lengths]
    offsets = segment_starts([sum(each) for each in lengths])
    return [
        [(offset + start[group], each[group]) for offset, start, each in zip(offsets, starts, lengths, strict=True)]
        for group in groups
    ]


class _Permute(torch.autograd.Function):
    # The gradient of index_select adds row by row. A permutation needs no sum: its gradient is the inverse one.

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return permute_rows(grads[0], back, order), None, None


def permute_rows(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Return rows of x [S, ...] in another order; `back` is the inverse of the permutation `order`."""
    result: Tensor = _Permute.apply(x, order, back)
    return result


def invert_permutation(order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the permutation that undoes `order`, on the CPU."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back


def segment_permutation(counts: Sequence[int], order: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the permutation [S], and its inverse [S], that puts packed segments of `counts` rows into `order`."""
    starts = segment_starts(counts)
    rows = concat_ranges([starts[i] for i in order], [counts[i] for i in order])
    return to_device(rows, device), to_device(invert_permutation(rows), device)


@dataclass(frozen=True)
class Layout:
    """Holds the regions on the packed axis, sorted by group, and named partitions of it. Built on the CPU."""

    order: tuple[int, ...]
    """The caller's index of every region, in packed order: a stable sort by group."""
    sizes: tuple[Grid, ...]
    """Grid of every region, in packed order."""
    groups: tuple[int, ...]
    """Inquiry group of every region, in packed order; never decreasing."""
    partitions: Mapping[str, tuple[int, ...]]
    """Segment lengths by name, `region`, `group` and the encoder's own; each sums to S."""
    attention: Kernel = "auto"
    """The attention kernel that was asked for."""
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        sizes: Sequence[Grid],
        counts: Sequence[int],
        groups: Sequence[int],
        encoder_partitions: Partitions | None = None,
        attention: Kernel = "auto",
    ) -> Layout:
        """Lay out regions with grids `sizes` and `counts` tokens each, given in any order.

        `encoder_partitions` returns the encoder's own partitions of regions in packed order. Raises ValueError if a
        partition does not cover the tokens, or would let two groups see each other.
        """
        # A segment of partition `group` is one slice of the packed axis, so the regions of a group must be neighbours.
        order = tuple(sorted(range(len(groups)), key=lambda region: groups[region]))
        packed_sizes = tuple(tuple(sizes[region]) for region in order)
        packed_groups = tuple(groups[region] for region in order)
        lengths = tuple(counts[region] for region in order)
        return cls._from_packed(order, packed_sizes, packed_groups, lengths, encoder_partitions, attention)

    def with_sizes(
        self, sizes: Sequence[Grid], counts: Sequence[int], encoder_partitions: Partitions | None = None
    ) -> Layout:
        """Return the layout of the same regions with other grids and counts of tokens, both in packed order."""
        return self._from_packed(
            self.order, tuple(sizes), self.groups, tuple(counts), encoder_partitions, self.attention
        )

    @classmethod
    def _from_packed(
        cls,
        order: tuple[int, ...],
        sizes: tuple[Grid, ...],
        groups: tuple[int, ...],
        lengths: tuple[int, ...],
        encoder_partitions: Partitions | None,
        attention: Kernel,
    ) -> Layout:
        # Groups come in ascending order, so the dict keeps them in packed order.
        of_group: dict[int, int] = {}
        for group, length in zip(groups, lengths, strict=True):
            of_group[group] = of_group.get(group, 0) + length
        partitions = {"region": lengths, "group": tuple(of_group.values())}
        for name, segments in (encoder_partitions(sizes) if encoder_partitions else {}).items():
            partitions[name] = tuple(segments)
        layout = cls(order, sizes, groups, partitions, attention)
        for name in partitions:
            layout._check_partition(name)
        return layout

    def _check_partition(self, name: str) -> None:
        # Attention trusts these lengths on the device, where a wrong one would read the tokens of others unnoticed.
        ends = np.cumsum(self.partitions[name], dtype=np.int64)
        if len(ends) == 0 or ends[-1] != self.length:
            total = int(ends[-1]) if len(ends) else 0
            raise ValueError(
                f"Partition '{name}' covers {total} tokens of {self.length}. Correct `Encoder.partitions`."
            )
        if not np.isin(np.cumsum(self.partitions["group"]), ends).all():
            raise ValueError(f"A segment of partition '{name}' spans two inquiry groups. Correct `Encoder.partitions`.")

    @property
    def length(self) -> int:
        """Number of packed tokens S."""
        return sum(self.partitions["region"])

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned the first time. For index tensors, which cost a copy to the device."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def token_groups(self, device: torch.device) -> Tensor:
        """Return the inquiry group of every token; [S]."""
        lengths = self.partitions["region"]
        return self.get_or_make(("token_groups", device), lambda: to_device(np.repeat(self.groups, lengths), device))

    def token_regions(self, device: torch.device) -> Tensor:
        """Return the region of every token, as its index in packed order; [S]."""
        lengths = self.partitions["region"]
        return self.get_or_make(
            ("token_regions", device), lambda: to_device(np.repeat(np.arange(len(lengths)), lengths), device)
        )

    def segment_groups(self, name: str) -> tuple[int, ...]:
        """Return the inquiry group of every segment of a partition."""
        # A segment lies within one group (`_check_partition`), so the region of its first token tells the group.
        starts = segment_starts(self.partitions[name])
        ends = np.cumsum(self.partitions["region"])
        regions = np.searchsorted(ends, starts, side="right")
        return tuple(self.groups[region] for region in regions.tolist())

    def restore_order(self, packed: Tensor, counts: Sequence[int]) -> Tensor:
        """Put rows of regions, `counts` each in packed order, into the caller's order; [F, D] -> [F, D]."""
        if self.order == tuple(range(len(self.order))):
            return packed
        place = invert_permutation(np.asarray(self.order)).tolist()
        key = ("restore", tuple(counts), packed.device)
        return permute_rows(packed, *self.get_or_make(key, lambda: segment_permutation(counts, place, packed.device)))


@dataclass(frozen=True)
class Tokens:
    """Holds the packed vision tokens of many regions."""

    x: Tensor
    """[S, D]"""
    layout: Layout
    positions: Tensor | None = None
    """[S, P] positions on the encoder's grid; None for an encoder without RoPE."""

    def with_x(self, x: Tensor) -> Tokens:
        """Return the same tokens with other values [S, D]."""
        return replace(self, x=x)

    def after_block(self, x: Tensor, layout: Layout) -> Tokens:
        """Return the tokens [S', D'] after a block, which may have changed the layout."""
        if layout is self.layout:
            return self.with_x(x)
        if self.positions is not None:
            raise ValueError(
                "A block changed the grid of tokens that have positions. Leave `Tokens.positions` out in `embed`."
            )
        return Tokens(x, layout)
