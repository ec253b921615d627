"""The order of a Qwen2.5-VL region's patches on the packed axis: window by window, cell by cell within.

A cell is the square of `merge` x `merge` patches that the merger makes one feature. A window is a square of `side` x
`side` cells; windows at the right and lower edge have what is left. Grids are (h, w) or (t, h, w), and every slice of
time has windows of its own. In this order a window is one segment of the packed axis, so that attention within windows
needs no gathering, as in transformers' `get_vision_window_index`.

All functions depend on the grid alone, so their results are kept for the grids that come again. Letters: n patches or
cells of a region.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from vilavt_toolkit.contracts import Grid

Ints = np.ndarray[Any, np.dtype[np.int64]]


def cell_grid(size: Grid, merge: int) -> Grid:
    """Return the grid of cells of a region whose grid of patches is `size`."""
    return *size[:-2], size[-2] // merge, size[-1] // merge


@lru_cache(maxsize=4096)
def window_order(cells: Grid, side: int) -> tuple[Ints, tuple[int, ...]]:
    """Return the raster indices of a grid of cells, window by window [n], and the number of cells in each window."""
    rows, columns = cells[-2:]
    across = -(-columns // side)
    # The number of its window for every cell of a slice. A stable sort by it keeps the raster order within a window.
    window = (np.arange(rows) // side)[:, None] * across + np.arange(columns) // side
    order = np.argsort(window, axis=None, kind="stable")
    slices = np.arange(math.prod(cells[:-2]))
    lengths = np.tile(np.bincount(window.ravel()), len(slices))
    return (slices[:, None] * rows * columns + order).ravel(), tuple(lengths.tolist())


@lru_cache(maxsize=4096)
def patch_order(size: Grid, merge: int, side: int) -> Ints:
    """Return for every patch in window order its place when cells stand row after row; [n]."""
    order, _ = window_order(cell_grid(size, merge), side)
    return (order[:, None] * merge**2 + np.arange(merge**2)).ravel()


@lru_cache(maxsize=4096)
def patch_places(size: Grid, merge: int, side: int) -> Ints:
    """Return slice, row and column of every patch in window order; [n, 3]."""
    cells = cell_grid(size, merge)
    order, _ = window_order(cells, side)
    rest, column = np.divmod(order, cells[-1])
    time, row = np.divmod(rest, cells[-2])
    # The patches of a cell, row after row within it. Broadcasting [cells, 1] with [patches of a cell] puts them there.
    down, along = np.divmod(np.arange(merge**2), merge)
    parts = (time[:, None] + 0 * down, row[:, None] * merge + down, column[:, None] * merge + along)
    return np.stack([part.ravel() for part in parts], axis=-1)


@lru_cache(maxsize=4096)
def patch_raster(size: Grid, merge: int, side: int) -> Ints:
    """Return for every patch in window order its place when patches stand row after row, slice after slice; [n]."""
    time, row, column = patch_places(size, merge, side).T
    raster: Ints = (time * size[-2] + row) * size[-1] + column
    return raster
