"""Single tokens on a GPU: a step whose shapes never change, captured once and replayed as a CUDA graph.

Launching the kernels of a large model one by one takes longer than running them for one token a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel
from vilavt_toolkit.generation.kv_cache import KeyValues

log = logging.getLogger(__name__)

_WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels and take their memory."""


class StaticStep:
    """One token of each of `rows` rows of a cache, behind what they hold. A `CacheView` over all its columns."""

    kept = None

    def __init__(self, language_model: LanguageModel, cache: KeyValues, rows: int) -> None:
        self._language_model, self._cache = language_model, cache
        device = cache.device
        self._rows = torch.arange(rows, device=device)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(language_model.axes, rows, 1, dtype=torch.long, device=device)
        self._columns = torch.zeros(rows, dtype=torch.long, device=device)
        self._real = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self.mask = torch.zeros((), device=device)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, 1, d] to each row's next column; those of all columns, [B, H, C, d]."""
        kept = self._cache.layers[layer]
        return self._add(kept[0], keys), self._add(kept[1], values)

    def _add(self, kept: Tensor, new: Tensor) -> Tensor:
        kept[self._rows, :, self._columns] = new[:, :, 0].to(kept.dtype)
        return kept[: len(self._rows), :, : self._cache.columns].to(new.dtype)

    def run(self, ids: Sequence[int], capture: bool) -> Tensor:
        """Logits [B, V] behind a token of each row; with `capture`, of a graph that lives as long as this does."""
        rows = len(self._rows)
        padding = [0] * (rows - len(ids))
        self._ids.copy_(torch.tensor([*ids, *padding])[:, None])
        self._columns.copy_(torch.tensor(self._cache.lengths[:rows]))
        self._positions.copy_(torch.tensor(self._cache.free[:rows])[None, :, None].expand_as(self._positions))
        if not capture:
            return self._forward()[: len(ids)]
        if self._graph is None:
            self._capture()
        assert self._graph is not None and self._logits is not None
        self._graph.replay()
        return self._logits[: len(ids)]

    def _capture(self) -> None:
        # What the runs write is what the step itself will: the next columns of the rows.
        make: Any = torch.cuda.Stream  # untyped
        side = make()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._forward()
        self._graph = graph

    def _forward(self) -> Tensor:
        embedded = self._language_model.embed(self._ids)
        columns = torch.arange(self._cache.columns, device=self._columns.device)
        hidden = columns > self._columns[:, None]
        self.mask = torch.zeros(hidden.shape, dtype=embedded.dtype, device=hidden.device)
        self.mask = self.mask.masked_fill_(hidden, -torch.inf)[:, None, None]
        logits: Tensor = self._language_model(embedded, self._positions, self._real, self, last=1)[:, -1]
        return logits


class Graphs:
    """The captured steps of one cache, by number of rows; made anew when the cache has grown."""

    def __init__(self, language_model: LanguageModel, cache: KeyValues) -> None:
        self._language_model, self._cache = language_model, cache
        self._steps: dict[int, StaticStep] = {}
        self._columns = -1
        self._refused = False

    def step(self, ids: Sequence[int]) -> Tensor | None:
        """Logits [B, V] behind a token of each of the first rows; None where no graph can be had.

        The cache has room for a column more.
        """
        cache = self._cache
        if self._refused or cache.device.type != "cuda" or torch.is_autocast_enabled("cuda") or not cache.layers:
            return None
        if cache.columns != self._columns:
            self._steps, self._columns = {}, cache.columns
        # As many rows as the next power of two: rows that come and go need no new graph.
        rows = min(len(cache.lengths), 1 << (len(ids) - 1).bit_length())
        try:
            if rows not in self._steps:
                self._steps[rows] = StaticStep(self._language_model, cache, rows)
            return self._steps[rows].run(ids, capture=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("tokens are written without a CUDA graph, which is slower: %s", error)
            self._refused = True
            return None
