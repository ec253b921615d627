"""Packed vision tokens and the layout that says which of them belong together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
Kernel = Literal["auto", "buckets", "varlen"]
"""How segments are attended over: in a call per length, in one call for all, or as `varlen.choose` says."""
Partitions = Callable[[Sequence[tuple[int, ...]]], Mapping[str, Sequence[int]]]


def to_device(values: Sequence[int] | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Integers as a tensor on `device`, copied without waiting for it."""
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device, non_blocking=True)


def runs(starts: Sequence[int], lengths: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Concatenated ranges [start, start + length), on the CPU."""
    sizes = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(np.asarray(starts, dtype=np.int64) - ends + sizes, sizes)


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each of the packed segments starts."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]).tolist() if len(lengths) else []


def spread(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [N] of values [M, ...], any of them many times; [N, ...].

    The gradient sums in a fixed order on every device, which that of `values[index]` does not.
    """
    if values.dim() == 2:
        return F.embedding(index, values)
    return F.embedding(index, values.flatten(1)).view(-1, *values.shape[1:])


class _Permute(torch.autograd.Function):
    # The gradient of index_select adds row by row; of a permutation it is just the way back.

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return permute(grads[0], back, order), None, None


def permute(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Rows of x [S, ...] in another order; `back` is the inverse of the permutation `order`."""
    result: Tensor = _Permute.apply(x, order, back)
    return result


def inverse(order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The permutation that undoes `order`, on the CPU."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back


def permutation(counts: Sequence[int], order: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """What `permute` needs to bring packed segments of `counts` rows each into `order`; [S], [S]."""
    starts = offsets(counts)
    rows = runs([starts[i] for i in order], [counts[i] for i in order])
    return to_device(rows, device), to_device(inverse(rows), device)


@dataclass(frozen=True)
class Layout:
    """Who is who on the packed axis: regions sorted by group, and named partitions. Built on the CPU."""

    order: tuple[int, ...]
    """The caller's index of every region, in packed order: sorted by group, stable."""
    sizes: tuple[tuple[int, ...], ...]
    """Grid of every region, in packed order."""
    groups: tuple[int, ...]
    """Inquiry group of every region, in packed order; never decreasing."""
    partitions: Mapping[str, tuple[int, ...]]
    """Segment lengths by name, each summing to S: `region`, `group`, and the encoder's own."""
    attention: Kernel = "auto"
    """The attention kernel that is wanted."""
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        sizes: Sequence[tuple[int, ...]],
        counts: Sequence[int],
        groups: Sequence[int],
        own: Partitions | None = None,
        attention: Kernel = "auto",
    ) -> Layout:
        """Lay out regions with grids `sizes` and `counts` tokens each, given in any order.

        `own` returns the encoder's own partitions of regions in packed order. Raises ValueError where a
        partition does not cover the tokens or would let two groups see each other.
        """
        order = tuple(sorted(range(len(groups)), key=lambda region: groups[region]))
        packed_sizes = tuple(tuple(sizes[region]) for region in order)
        packed_groups = tuple(groups[region] for region in order)
        lengths = tuple(counts[region] for region in order)
        return cls._packed(order, packed_sizes, packed_groups, lengths, own, attention)

    def resized(self, sizes: Sequence[tuple[int, ...]], counts: Sequence[int], own: Partitions | None = None) -> Layout:
        """The same regions with other grids and numbers of tokens, both in packed order; `own` as in `build`."""
        return self._packed(self.order, tuple(sizes), self.groups, tuple(counts), own, self.attention)

    @classmethod
    def _packed(
        cls,
        order: tuple[int, ...],
        sizes: tuple[tuple[int, ...], ...],
        groups: tuple[int, ...],
        lengths: tuple[int, ...],
        own: Partitions | None,
        attention: Kernel,
    ) -> Layout:
        of_group: dict[int, int] = {}
        for group, length in zip(groups, lengths, strict=True):
            of_group[group] = of_group.get(group, 0) + length
        partitions = {"region": lengths, "group": tuple(of_group.values())}
        for name, segments in (own(sizes) if own else {}).items():
            partitions[name] = tuple(segments)
        layout = cls(order, sizes, groups, partitions, attention)
        for name in partitions:
            layout._check(name)
        return layout

    def _check(self, name: str) -> None:
        ends = np.cumsum(self.partitions[name], dtype=np.int64)
        if len(ends) == 0 or ends[-1] != self.length:
            total = int(ends[-1]) if len(ends) else 0
            raise ValueError(f"Partition '{name}' covers {total} tokens of {self.length}.")
        if not np.isin(np.cumsum(self.partitions["group"]), ends).all():
            raise ValueError(f"A segment of partition '{name}' crosses from one inquiry group into the next.")

    @property
    def length(self) -> int:
        """Number of packed tokens S."""
        return sum(self.partitions["region"])

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time; for index tensors, which cost a copy to the device."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def group_of(self, device: torch.device) -> Tensor:
        """The group of every token; [S]."""
        lengths = self.partitions["region"]
        return self.cached(("group_of", device), lambda: to_device(np.repeat(self.groups, lengths), device))

    def region_of(self, device: torch.device) -> Tensor:
        """The region of every token, by its place in packed order; [S]."""
        lengths = self.partitions["region"]
        return self.cached(
            ("region_of", device), lambda: to_device(np.repeat(np.arange(len(lengths)), lengths), device)
        )

    def segment_groups(self, name: str) -> tuple[int, ...]:
        """The group of every segment of the partition `name`."""
        starts = offsets(self.partitions[name])
        ends = np.cumsum(self.partitions["region"])
        regions = np.searchsorted(ends, starts, side="right")
        return tuple(self.groups[region] for region in regions.tolist())

    def restore(self, packed: Tensor, counts: Sequence[int]) -> Tensor:
        """Put rows of regions, `counts` each in packed order, into the caller's order; [F, D] -> [F, D]."""
        if self.order == tuple(range(len(self.order))):
            return packed
        place = inverse(np.asarray(self.order)).tolist()
        key = ("restore", tuple(counts), packed.device)
        return permute(packed, *self.cached(key, lambda: permutation(counts, place, packed.device)))


@dataclass(frozen=True)
class Tokens:
    """Packed vision tokens of many regions."""

    x: Tensor
    """[S, D]"""
    layout: Layout
    positions: Tensor | None = None
    """[S, P] positions on the encoder's grid, for rotary encoders."""

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens with other values [S, D]."""
        return replace(self, x=x)

    def behind(self, x: Tensor, layout: Layout) -> Tokens:
        """The tokens [S', D'] that a block made of these, where it may have changed the layout."""
        if layout is self.layout:
            return self.with_x(x)
        if self.positions is not None:
            raise ValueError("A block changed the grid of tokens that have positions; no encoder may.")
        return Tokens(x, layout)
