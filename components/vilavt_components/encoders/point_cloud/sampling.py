"""Points of a cloud thinned out, spread evenly, and gathered around centres; in numpy, for data workers.

Nothing here depends on the order in which points are given: of equals the first in lexicographic order is taken, and
`thinned` gives points in that order to what comes after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

# How much finer a grid is tried, up to what float32 tells apart.
_FINER, _FINEST = 16, 2**17
# A table with an entry per cell beats sorting the points by cell up to about here.
_TABLE = 2**21
# float32 has all whole numbers up to here.
_EXACT = 2**24
# The share of what may be kept that is aimed at, that is enough, and how often a better grid is looked for.
_AIM, _ENOUGH, _ATTEMPTS = 0.93, 0.85, 6
# Distances that are held at once, so that large settings take no large memory.
_AT_ONCE = 2**18


def boxed(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Coordinates [3, N] of points [N, 3 + F] from 0 to 1 along the longest side of their box; its corners [3], [3]."""
    unit: Floats = np.array(points[:, :3].T, order="C")  # a copy in any case
    low, high = unit.min(1).astype(np.float64), unit.max(1).astype(np.float64)
    longest = (high - low).max()
    if longest > np.finfo(unit.dtype).max:
        unit = unit.astype(np.float64)
    unit -= low.astype(unit.dtype)[:, None]
    if longest > 0:
        unit /= unit.dtype.type(longest)
    return unit, low, high


def thinned(points: Floats, unit: Floats, most: int, least: int = 1) -> Indices:
    """Indices of `most` of points [N, 3 + F] at most, in lexicographic order; `unit` as `boxed` gives it.

    Of every cell of a fine grid the point nearest to its middle is taken, and of those one for every cell of a second
    grid, so coarse that nearly `most` are left. So every point lies within the sum of the two cells' diagonals of one
    that is kept, and of `count` farthest points of these the largest gap to any point is at most twice what is
    possible with `count` points, and that sum. Clouds of `most` points and fewer keep all; others at least `least`
    where there are so many places, told apart to a 2**17th of the longest side.
    """
    if len(points) <= most:
        return _ordered(points)
    # On a surface this leaves a few times `most`: little is left to do, and nothing is lost by it.
    fine = 2 ** round(math.log2(1.5 * math.sqrt(most) + 1))
    kept = _stand_ins(points, unit, fine)
    counts = {1: 1, fine: len(kept)}
    # A thin or small part of a large box has few cells: finer ones are tried before much of the budget is left unused.
    while len(kept) < 2 * most and fine < _FINEST and len(kept) < len(points):
        fine *= _FINER
        kept = _stand_ins(points, unit, fine)
        counts[fine] = len(kept)
    if len(kept) > most:
        near = unit.take(kept, axis=1)
        chosen = kept[_stand_ins(points[kept], near, _fitting(near, most, counts))]
        if len(chosen) < least:  # coarse grids jump: a block that has 27 cells has 64 of the next smaller ones
            kept = kept[_ordered(points[kept])]
            chosen = kept[farthest(points[kept, :3], least)]
        kept = chosen
    return kept[_ordered(points[kept])]


def farthest(xyz: Floats, count: int) -> Indices:
    """Farthest-point sampling: indices of `count` of xyz [M, 3], or of all distinct ones if there are fewer.

    The first is farthest from the mean, every next farthest from all before; of equals the first. The largest distance
    of a point to the chosen ones is at most twice the smallest possible (Gonzalez, 1985).
    """
    axes = np.ascontiguousarray(xyz.T, dtype=np.float64)
    distance = _squares(axes, axes.mean(1))
    chosen = [int(distance.argmax())]
    distance = _squares(axes, axes[:, chosen[0]])
    while len(chosen) < count:
        index = int(distance.argmax())
        if distance[index] == 0:
            break
        chosen.append(index)
        np.minimum(distance, _squares(axes, axes[:, index]), out=distance)
    return np.asarray(chosen, dtype=np.int64)


def neighbours(xyz: Floats, centres: Indices, k: int) -> Indices:
    """Indices [n, k] of the k points of xyz [M, 3] that are nearest to each of the points `centres`, itself included.

    Of fewer than k points each comes several times, which a maximum over them does not notice.
    """
    axes = np.ascontiguousarray(xyz.T, dtype=np.float64)
    if len(xyz) <= k:
        return np.broadcast_to(np.arange(k) % len(xyz), (len(centres), k)).copy()
    step = max(1, _AT_ONCE // len(xyz))
    parts = [
        np.argpartition(_squares(axes[:, None], axes[:, centres[start : start + step]]), k - 1, axis=1)[:, :k]
        for start in range(0, len(centres), step)
    ]
    return np.concatenate(parts)


def _ordered(points: Floats) -> Indices:
    """Indices that bring points [N, 3 + F] into lexicographic order."""
    return np.lexsort(points.T[::-1]).astype(np.int64)


def _squares(axes: Floats, point: Floats) -> Floats:
    """Squared distances of points [3, ..., M] to points [3, ...]."""
    x, y, z = axes - point[..., None]
    total: Floats = x * x + y * y + z * z
    return total


def _cells(unit: Floats, grid: float) -> tuple[Indices, Floats, int]:
    """The cell of every point on a grid of `grid` cells along the longest side, and how many there are at most.

    Between them the squared distance to the middle of the cell, in cells.
    """
    kind = unit.dtype.type
    cells = np.zeros(unit.shape[1], dtype=unit.dtype if grid**3 <= _EXACT else np.float64)
    distance, count = np.zeros(unit.shape[1], dtype=unit.dtype), 1
    for axis in unit:
        inside = axis * kind(grid)
        whole = np.floor(inside)
        # The upper faces of the box belong to the last cells.
        np.minimum(whole, kind(math.ceil(grid) - 1), out=whole)
        side = int(whole.max()) + 1
        cells *= side
        cells += whole
        inside -= whole
        inside -= kind(0.5)
        inside *= inside
        distance += inside
        count *= side
    return cells.astype(np.int64), distance, count


def _stand_ins(points: Floats, unit: Floats, grid: float) -> Indices:
    """Indices of the point of every cell that is nearest to its middle; of equals the first in lexicographic order."""
    cells, key, count = _cells(unit, grid)
    if count > _TABLE:
        used, cells = np.unique(cells, return_inverse=True)
        count = len(used)
    rows, occupied = np.arange(len(points)), 0
    for column in range(-1, points.shape[1]):
        key = points[rows, column] if column >= 0 else key
        best = np.full(count, np.inf, dtype=key.dtype)
        np.minimum.at(best, cells, key)
        kept = np.flatnonzero(key == best[cells])
        rows, cells = rows[kept], cells[kept]
        occupied = occupied or int(np.count_nonzero(best < np.inf))
        if len(rows) == occupied:
            return rows
    return rows[np.unique(cells, return_index=True)[1]]  # what is left is alike to the last bit


def _fitting(unit: Floats, most: int, counts: Mapping[int, int]) -> float:
    """The number of cells along the longest side that leaves nearly `most` occupied, and no more.

    `counts` are occupied cells by the number along the side, of which one at least is too many.
    """
    low = max((float(grid), count) for grid, count in counts.items() if count <= most)
    high = min((float(grid), count) for grid, count in counts.items() if count > most)
    for attempt in range(_ATTEMPTS):
        if low[1] >= _ENOUGH * most or high[0] / low[0] < 1.03:
            break
        # Occupied cells grow as a power of the grid, two for a surface; where that leads nowhere, half way.
        width, growth = math.log(high[0] / low[0]), math.log(high[1] / low[1])
        share = math.log(_AIM * most / low[1]) / growth if attempt < _ATTEMPTS // 2 else 0.5
        grid = low[0] * math.exp(width * min(max(share, 0.05), 0.95))
        count = _occupied(unit, grid)
        if count <= most:
            low = grid, count
        else:
            high = grid, count
    return low[0]


def _occupied(unit: Floats, grid: float) -> int:
    side = math.ceil(grid)
    x, y, z = np.minimum((unit * unit.dtype.type(grid)).astype(np.int64), side - 1)
    cells = (x * side + y) * side + z
    if side**3 > _TABLE:
        return len(np.unique(cells))
    table = np.zeros(side**3, dtype=bool)
    table[cells] = True
    return int(np.count_nonzero(table))
