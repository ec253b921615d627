"""The KV cache of the language model: one row per dialogue, each as long as what it has read, none read twice."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

_ROUND = {"cuda": 1024}
_ROUND_ELSEWHERE = 64
"""The cache grows to a multiple of this and by at least 25%, so total copying stays linear.

On a GPU the multiple is longer than a turn: every size of the cache needs CUDA graphs of its own.
"""


class TokenStep(Protocol):
    """A way to read single tokens that depends on the tensors of one cache."""

    def run_step(self, ids: Sequence[int]) -> Tensor | None:
        """Return logits [B, V] after one token of each of the first rows, or None if it cannot."""
        ...


class KVCache:
    """Keys and values of at most `rows` dialogues, side by side. Row b holds its first `lengths[b]` columns."""

    def __init__(self, rows: int, device: torch.device) -> None:
        # Plain lists, not tensors: every step decides by them on the CPU, and must not wait for the device.
        self.device = device
        self.lengths = [0] * rows
        self.next_positions = [0] * rows
        """The first free position of every row. With M-RoPE, positions grow more slowly than columns."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values [rows, H, columns, d] of every layer, allocated by the first forward."""
        self.graphs: TokenStep | None = None
        """Steps captured over these tensors, on a GPU."""
        self._columns = 0
        self.protected = 0
        """Columns of a single row that several dialogues share."""
        self.owner: weakref.ref[CachedPrefix] | None = None
        """The dialogue that may write after the protected columns of a single row."""

    @property
    def columns(self) -> int:
        """Columns that are allocated."""
        return self._columns

    @property
    def bytes(self) -> int:
        """Allocated memory."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    @torch.inference_mode()
    def reserve_columns(self, columns: int) -> None:
        """Allocate so many columns at least, and keep what is held."""
        if columns <= self._columns:
            return
        grown = max(columns, self._columns + self._columns // 4)
        step, held = _ROUND.get(self.device.type, _ROUND_ELSEWHERE), max(self.lengths)
        room = -(-grown // step) * step
        # An interruption or an out-of-memory error may come between two layers. Layers with more room than they need
        # are harmless then, and the next call grows the rest. Graphs over replaced layers would be wrong, so they go
        # first.
        self.graphs = None
        for index, (keys, values) in enumerate(self.layers):
            if keys.shape[2] < room:
                self.layers[index] = _grow_columns(keys, held, room), _grow_columns(values, held, room)
        self._columns = room

    def get_layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, allocated like `keys` and `values` [B, H, L, d] if they are new."""
        while len(self.layers) <= index:
            rows = len(self.lengths)
            # Zeros, not empty memory: masked columns are multiplied by 0, and 0 times a NaN left there is NaN.
            empty = [part.new_zeros(rows, part.shape[1], self._columns, part.shape[3]) for part in (keys, values)]
            self.layers.append((empty[0], empty[1]))
        return self.layers[index]

    def truncate_row(self, row: int, length: int) -> None:
        """Forget the columns of a row from `length` on. They must be text, so that each has one position."""
        self.next_positions[row] -= self.lengths[row] - length
        self.lengths[row] = length

    @torch.inference_mode()
    def clear_row(self, row: int, start: int = 0) -> None:
        """Overwrite the columns of a row from `start` on with zeros, after a forward has left NaN there."""
        for part in (part for layer in self.layers for part in layer):
            part[row, :, start:] = 0

    @torch.inference_mode()
    def copy_row(
        self, source: KVCache, there: int, here: int, length: int | None = None, next_position: int | None = None
    ) -> None:
        """Copy row `there` of `source` to row `here`; with `length`, its first columns, up to `next_position`."""
        length = source.lengths[there] if length is None else length
        next_position = source.next_positions[there] if next_position is None else next_position
        self.reserve_columns(length)
        for index, (keys, values) in enumerate(source.layers):
            own_keys, own_values = self.get_layer(index, keys, values)
            own_keys[here, :, :length] = keys[there, :, :length]
            own_values[here, :, :length] = values[there, :, :length]
        self.lengths[here], self.next_positions[here] = length, next_position

    def prepare_update(self, rows: Sequence[int], counts: Sequence[int], dtype: torch.dtype) -> CacheUpdate:
        """Return what one forward adds to `rows`: `counts` new columns each, padded on the left, with room for them."""
        self.reserve_columns(max(self.lengths[row] + count for row, count in zip(rows, counts, strict=True)))
        return CacheUpdate(self, rows, counts, dtype)

    def commit(self, rows: Sequence[int], counts: Sequence[int], next_positions: Sequence[int]) -> None:
        """Keep what a forward has added. Without this, the next forward overwrites it."""
        for row, count, first in zip(rows, counts, next_positions, strict=True):
            self.lengths[row] += count
            self.next_positions[row] = first


def _grow_columns(part: Tensor, held: int, columns: int) -> Tensor:
    rows, heads, _, width = part.shape
    larger = part.new_zeros(rows, heads, columns, width)
    larger[:, :, :held] = part[:, :, :held]
    return larger


class CacheUpdate:
    """New columns of some rows: where they are written, and what each of them sees. A `CacheView`."""

    def __init__(self, cache: KVCache, rows: Sequence[int], counts: Sequence[int], dtype: torch.dtype) -> None:
        self._cache, length = cache, max(counts)
        self._columns = max(cache.lengths[row] + count for row, count in zip(rows, counts, strict=True))
        # Padding is on the left, so a short row's first column would lie before its new ones, or even below zero.
        first = [cache.lengths[row] - (length - count) for row, count in zip(rows, counts, strict=True)]
        columns = torch.tensor(first)[:, None] + torch.arange(length)
        # Padding is not written at all, since those columns hold what the row has read before.
        real = torch.arange(length) >= length - torch.tensor(counts)[:, None]
        row_index, column_index = real.nonzero(as_tuple=True)
        self._from = None if bool(real.all()) else (row_index * length + column_index).to(cache.device)
        self._into = torch.tensor(rows)[row_index].to(cache.device), columns[row_index, column_index].to(cache.device)
        # None if the rows are the first ones in order: then a slice of the cache is read instead of a copy.
        self._rows = None if list(rows) == list(range(len(rows))) else torch.tensor(rows).to(cache.device)
        self._count = len(rows)
        self.prefix_length = first[0] if self._from is None and len(set(first)) == 1 else None
        self._last, self._dtype = columns, dtype

    @cached_property
    def mask(self) -> Tensor:
        """The mask [B, 1, L, C]. Padding sees the first column, because attention to nothing gives NaN."""
        last = self._last.clamp(min=0).to(self._cache.device)
        hidden = torch.arange(self._columns, device=last.device) > last[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=last.device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add rotated keys and values [B, H, L, d] of the new columns; return those of all columns, [B, H, C, d]."""
        held = self._cache.get_layer(layer, keys, values)
        return self._write_columns(held[0], keys), self._write_columns(held[1], values)

    def _write_columns(self, held: Tensor, new: Tensor) -> Tensor:
        packed = new.transpose(1, 2).flatten(0, 1)
        rows, columns = self._into
        held[rows, :, columns] = (packed if self._from is None else packed[self._from]).to(held.dtype)
        used = held[:, :, : self._columns]
        return (used[: self._count] if self._rows is None else used.index_select(0, self._rows)).to(new.dtype)


class CachedPrefix:
    """Holds what one dialogue has read, from question to question. Forks share it until one of them reads on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cache: KVCache | None = None
        self.length = 0
        """Number of ids that have been read."""
        self.next_position = 0
        """The first free position."""

    @property
    def bytes(self) -> int:
        """Memory of the cache, which other forks may share."""
        return 0 if self._cache is None else self._cache.bytes

    def fork(self) -> CachedPrefix:
        """Return another prefix that holds the same. Nothing is copied before both read on."""
        other = CachedPrefix(self._device)
        other._cache, other.length, other.next_position = self._cache, self.length, self.next_position
        if self._cache is not None:
            self._cache.protected = max(self._cache.protected, self.length)
        return other

    def truncate(self, length: int, next_position: int) -> None:
        """Forget what was read from `length` on; `next_position` is the first free position there."""
        self.length, self.next_position = length, next_position

    def open_for_writing(self) -> KVCache:
        """Return a cache of one row to read on in. It is a copy if a fork holds columns that would change."""
        cache = self._cache
        if cache is None or not self._may_write(cache):
            own = KVCache(1, self._device)
            own.owner = weakref.ref(self)
            if cache is not None and self.length:
                own.copy_row(cache, 0, 0, self.length, self.next_position)
            self._cache = cache = own
        # Another fork may have read on in a shared cache: the row's own length is this fork's, not the last writer's.
        cache.lengths[0], cache.next_positions[0] = self.length, self.next_position
        return cache

    def _may_write(self, cache: KVCache) -> bool:
        """Return True if no other fork holds the columns after this one's length, and take them if so."""
        owner = cache.owner() if cache.owner is not None else None
        if self.length < cache.protected or (owner is not None and owner is not self):
            return False
        # The owner is a weak reference: once a fork is gone, another may write over what only it held.
        cache.owner = weakref.ref(self)
        return True

    def store_row(self, cache: KVCache, row: int) -> None:
        """Keep what a row of a cache has read."""
        if cache is not self._cache:
            own = KVCache(1, self._device)
            own.owner = weakref.ref(self)
            own.copy_row(cache, row, 0)
            self._cache = own
        self.length, self.next_position = cache.lengths[row], cache.next_positions[row]

    def restore_row(self, cache: KVCache, row: int) -> None:
        """Copy what this prefix holds into a row of a cache."""
        if self._cache is None:
            cache.lengths[row] = cache.next_positions[row] = 0
            return
        # Not the shared cache's own lengths: another fork may be reading on in it.
        cache.copy_row(self._cache, 0, row, self.length, self.next_position)
