"""The language model's keys and values, a row per dialogue: each as long as what it has read, none read twice."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vilavt_toolkit.generation.cuda_graphs import Graphs

_ROUND = {"cuda": 1024}
_ROUND_ELSEWHERE = 64
"""Columns are made room for in such steps, and by a quarter of what there is, so that growing costs little in all.

On a GPU the steps are longer than a turn: single tokens are captured anew for every size of the cache.
"""


class KeyValues:
    """Keys and values of at most `rows` dialogues, side by side; row b holds its first `lengths[b]` columns."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.device = device
        self.lengths = [0] * rows
        self.free = [0] * rows
        """The first free position of every row: M-RoPE's run slower than columns."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Of every layer keys and values [rows, H, columns, d]; made by the first forward, which knows their shapes."""
        self.graphs: Graphs | None = None
        """Steps that were captured over it, on a GPU; they live as long as its tensors."""
        self._columns = 0
        self.protected = 0
        """Of a single row: columns that several dialogues hold."""
        self.owner: weakref.ref[Kept] | None = None
        """Of a single row: the dialogue that may write behind what is protected."""

    @property
    def columns(self) -> int:
        """Columns that there is room for."""
        return self._columns

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    @torch.inference_mode()
    def reserve(self, columns: int) -> None:
        """Make room for so many columns; what is held stays."""
        if columns <= self._columns:
            return
        grown = max(columns, self._columns + self._columns // 4)
        step, held = _ROUND.get(self.device.type, _ROUND_ELSEWHERE), max(self.lengths)
        room = -(-grown // step) * step
        # Interrupted, or out of memory, it can be done again: layers with more room than they need do no harm, but
        # graphs of the layers that were there would.
        self.graphs = None
        for index, (keys, values) in enumerate(self.layers):
            if keys.shape[2] < room:
                self.layers[index] = _grown(keys, held, room), _grown(values, held, room)
        self._columns = room

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer, made to fit the first that come."""
        while len(self.layers) <= index:
            rows = len(self.lengths)
            # Zeros: what is masked is multiplied by 0, and 0 times what memory happens to hold may be no number.
            empty = [part.new_zeros(rows, part.shape[1], self._columns, part.shape[3]) for part in (keys, values)]
            self.layers.append((empty[0], empty[1]))
        return self.layers[index]

    def truncate(self, row: int, length: int, free: int | None = None) -> None:
        """Forget a row's columns from `length` on; all of them text, unless the `free` position there is given."""
        self.free[row] = self.free[row] - (self.lengths[row] - length) if free is None else free
        self.lengths[row] = length

    @torch.inference_mode()
    def clear(self, row: int, start: int = 0) -> None:
        """Put zeros where nothing is held, from column `start` of a row on: what went wrong there may be no number."""
        for part in (part for layer in self.layers for part in layer):
            part[row, :, start:] = 0

    @torch.inference_mode()
    def copy_row(
        self, source: KeyValues, there: int, here: int, length: int | None = None, free: int | None = None
    ) -> None:
        """Let row `here` hold what row `there` of `source` holds, or the first `length` columns, up to `free`."""
        length = source.lengths[there] if length is None else length
        free = source.free[there] if free is None else free
        self.reserve(length)
        for index, (keys, values) in enumerate(source.layers):
            own_keys, own_values = self.layer(index, keys, values)
            own_keys[here, :, :length] = keys[there, :, :length]
            own_values[here, :, :length] = values[there, :, :length]
        self.lengths[here], self.free[here] = length, free

    def extension(self, rows: Sequence[int], counts: Sequence[int], dtype: torch.dtype) -> Extension:
        """What one forward adds to `rows`: `counts` new columns each, padded on the left; makes room for them."""
        self.reserve(max(self.lengths[row] + count for row, count in zip(rows, counts, strict=True)))
        return Extension(self, rows, counts, dtype)

    def commit(self, rows: Sequence[int], counts: Sequence[int], free: Sequence[int]) -> None:
        """Keep what a forward has added; `free` positions behind it. Without this, the next one overwrites it."""
        for row, count, first in zip(rows, counts, free, strict=True):
            self.lengths[row] += count
            self.free[row] = first


def _grown(part: Tensor, held: int, columns: int) -> Tensor:
    rows, heads, _, width = part.shape
    larger = part.new_zeros(rows, heads, columns, width)
    larger[:, :, :held] = part[:, :, :held]
    return larger


class Extension:
    """New columns of some rows: where they are written, and what each of them sees. A `CacheView`."""

    def __init__(self, cache: KeyValues, rows: Sequence[int], counts: Sequence[int], dtype: torch.dtype) -> None:
        self._cache, length = cache, max(counts)
        self._columns = max(cache.lengths[row] + count for row, count in zip(rows, counts, strict=True))
        first = [cache.lengths[row] - (length - count) for row, count in zip(rows, counts, strict=True)]
        into = torch.tensor(first)[:, None] + torch.arange(length)
        # Columns of padding would be written before the row's own new ones; they are not written at all.
        real = torch.arange(length) >= length - torch.tensor(counts)[:, None]
        at = real.nonzero(as_tuple=True)
        self._from = None if bool(real.all()) else (at[0] * length + at[1]).to(cache.device)
        self._into = torch.tensor(rows)[at[0]].to(cache.device), into[at].to(cache.device)
        self._rows = None if list(rows) == list(range(len(rows))) else torch.tensor(rows).to(cache.device)
        self._count = len(rows)
        self.kept = first[0] if self._from is None and len(set(first)) == 1 else None
        self._last, self._dtype = into, dtype

    @cached_property
    def mask(self) -> Tensor:
        """What each new column sees; padding the first column, since attention to nothing is no number."""
        last = self._last.clamp(min=0).to(self._cache.device)
        hidden = torch.arange(self._columns, device=last.device) > last[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=last.device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, H, L, d] of the new columns, rotated; return those of all columns, [B, H, C, d]."""
        kept = self._cache.layer(layer, keys, values)
        return self._add(kept[0], keys), self._add(kept[1], values)

    def _add(self, kept: Tensor, new: Tensor) -> Tensor:
        packed = new.transpose(1, 2).flatten(0, 1)
        rows, columns = self._into
        kept[rows, :, columns] = (packed if self._from is None else packed[self._from]).to(kept.dtype)
        held = kept[:, :, : self._columns]
        return (held[: self._count] if self._rows is None else held.index_select(0, self._rows)).to(new.dtype)


class Kept:
    """What one dialogue has read, from question to question; shared with its forks until one of them reads on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cache: KeyValues | None = None
        self.length = 0
        """Ids that have been read."""
        self.free = 0
        """The first free position."""

    @property
    def bytes(self) -> int:
        """Memory that it takes, together with those that it is shared with."""
        return 0 if self._cache is None else self._cache.bytes

    def fork(self) -> Kept:
        """Another that holds the same; nothing is copied before both read on."""
        other = Kept(self._device)
        other._cache, other.length, other.free = self._cache, self.length, self.free
        if self._cache is not None:
            self._cache.protected = max(self._cache.protected, self.length)
        return other

    def truncate(self, length: int, free: int) -> None:
        """Forget what was read from `length` on; `free` is the first free position there."""
        self.length, self.free = length, free

    def writable(self) -> KeyValues:
        """Its keys and values as a cache of one row, to read on in; a copy where others hold what would change."""
        cache = self._cache
        if cache is None or not self._may_write(cache):
            own = KeyValues(1, self._device)
            own.owner = weakref.ref(self)
            if cache is not None and self.length:
                own.copy_row(cache, 0, 0, self.length, self.free)
            self._cache = cache = own
        cache.lengths[0], cache.free[0] = self.length, self.free
        return cache

    def _may_write(self, cache: KeyValues) -> bool:
        owner = cache.owner() if cache.owner is not None else None
        if self.length < cache.protected or (owner is not None and owner is not self):
            return False
        cache.owner = weakref.ref(self)
        return True

    def take(self, cache: KeyValues, row: int) -> None:
        """Hold what a row of a cache has read."""
        if cache is not self._cache:
            own = KeyValues(1, self._device)
            own.owner = weakref.ref(self)
            own.copy_row(cache, row, 0)
            self._cache = own
        self.length, self.free = cache.lengths[row], cache.free[row]

    def give(self, cache: KeyValues, row: int) -> None:
        """Let a row of a cache hold what this has read."""
        if self._cache is None:
            cache.lengths[row] = cache.free[row] = 0
            return
        # Whoever shares it may be reading on: its own lengths stay theirs.
        cache.copy_row(self._cache, 0, row, self.length, self.free)
