"""Single tokens on a GPU: a step of constant shapes, captured once and replayed as a CUDA graph.

Launching the kernels of a large model one by one takes longer than running them for one token a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel
from vilavt_toolkit.generation.kv_cache import KVCache

log = logging.getLogger(__name__)

_DEVICES = ("cuda",)
"""Types of devices that have graphs."""
_WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels and allocate their workspaces."""


class StaticStep:
    """Reads one token of each of the first `rows` rows of a cache. A `CacheView` over all its columns."""

    kept = None

    def __init__(self, language_model: LanguageModel, cache: KVCache, rows: int) -> None:
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
        """Write keys and values [B, H, 1, d] to each row's next column; return those of all columns, [B, H, C, d]."""
        held = self._cache.layers[layer]
        return self._write_column(held[0], keys), self._write_column(held[1], values)

    def _write_column(self, held: Tensor, new: Tensor) -> Tensor:
        # The index is a device tensor, so that a replayed graph writes to the columns that it holds by then.
        held[self._rows, :, self._columns] = new[:, :, 0].to(held.dtype)
        return held[: len(self._rows), :, : self._cache.columns].to(new.dtype)

    def run_step(self, ids: Sequence[int], capture: bool) -> Tensor:
        """Return logits [B, V] after a token of each row; with `capture`, by a graph that lives as long as this.

        Raises RuntimeError if no graph can be captured.
        """
        rows = len(self._rows)
        padding = [0] * (rows - len(ids))
        # Inputs are copied into the tensors that the graph was captured with: a graph knows addresses, not values.
        self._ids.copy_(torch.tensor([*ids, *padding])[:, None])
        self._columns.copy_(torch.tensor(self._cache.lengths[:rows]))
        self._positions.copy_(torch.tensor(self._cache.next_positions[:rows])[None, :, None].expand_as(self._positions))
        if not capture:
            return self._run_forward()[: len(ids)]
        # A capture records what the current device does, and the model may be on another one.
        with torch.cuda.device(self._cache.device):
            if self._graph is None:
                self._graph = self._capture_graph()
            self._graph.replay()
        assert self._logits is not None
        return self._logits[: len(ids)]

    def _capture_graph(self) -> torch.cuda.CUDAGraph:
        # A stream of this device: torch's own capture stream is made once, on the device of the first capture.
        make: Any = torch.cuda.Stream  # untyped
        own, current = make(), torch.cuda.current_stream()
        own.wait_stream(current)
        # The warm-up writes into the cache too. It writes what the step itself will: the next columns of the rows.
        with torch.cuda.stream(own):
            for _ in range(_WARM_UP):
                self._run_forward()
        current.wait_stream(own)
        graph = torch.cuda.CUDAGraph()
        # In the default mode, any CUDA call of another thread of the program would break the capture.
        with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
            self._logits = self._run_forward()
        self._check_graph(graph, self._logits)
        return graph

    def _check_graph(self, graph: torch.cuda.CUDAGraph, logits: Tensor) -> None:
        """Raise RuntimeError if a graph does not write its logits: replayed, it would give the same ones for ever."""
        logits.fill_(torch.nan)
        graph.replay()
        # The logit of a placeholder is -inf with any weights, so that NaN everywhere was not written by the model.
        if bool(logits.isnan().all()):
            raise RuntimeError("the captured graph is empty")

    def _run_forward(self) -> Tensor:
        # Every row attends to all allocated columns under a mask: a graph cannot be replayed with other shapes.
        embedded = self._language_model.embed(self._ids)
        columns = torch.arange(self._cache.columns, device=self._columns.device)
        hidden = columns > self._columns[:, None]
        self.mask = torch.zeros(hidden.shape, dtype=embedded.dtype, device=hidden.device)
        self.mask = self.mask.masked_fill_(hidden, -torch.inf)[:, None, None]
        logits: Tensor = self._language_model(embedded, self._positions, self._real, self, last=1)[:, -1]
        return logits


class CudaGraphs:
    """Holds the captured steps of one cache, by number of rows. They are captured again when the cache has grown."""

    def __init__(self, language_model: LanguageModel, cache: KVCache) -> None:
        self._language_model, self._cache = language_model, cache
        self._steps: dict[int, StaticStep] = {}
        self._columns = -1
        self._is_disabled = False

    def run_step(self, ids: Sequence[int]) -> Tensor | None:
        """Return logits [B, V] after a token of each of the first rows, or None if no graph can be captured.

        The cache must have room for one more column.
        """
        cache = self._cache
        kind = cache.device.type
        # Autocast keeps casts of weights until it ends, and a graph would go on to read them from freed memory.
        if self._is_disabled or kind not in _DEVICES or torch.is_autocast_enabled(kind) or not cache.layers:
            return None
        if cache.columns != self._columns:
            self._steps, self._columns = {}, cache.columns
        # The number of rows is rounded up to a power of two, so that rows that come and go need no new graph.
        rows = min(len(cache.lengths), 1 << (len(ids) - 1).bit_length())
        try:
            if rows not in self._steps:
                self._steps[rows] = StaticStep(self._language_model, cache, rows)
            return self._steps[rows].run_step(ids, capture=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("tokens are sampled without a CUDA graph, which is slower: %s", error)
            self._is_disabled = True
            return None
