"""Thin out the points of a cloud, choose centres among them, and gather neighbourhoods; in numpy, for data workers.

Nothing here depends on the order in which points are given. Among equals the first in lexicographic order is taken, and
`thin_points` returns points in that order to the steps that follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

# The factor by which a grid is refined, and the finest one: float32 tells about as many cells apart.
_FINER, _FINEST = 16, 2**17
# Up to about so many cells a table with an entry per cell is faster than sorting the points by cell.
_TABLE = 2**21
# float32 represents all whole numbers up to here.
_EXACT = 2**24
# Shares of the budget: the one aimed at, and the one that is enough; and how many grids are tried to get there.
_AIM, _ENOUGH, _ATTEMPTS = 0.93, 0.85, 6
# Number of distances held at once, so that large settings need no large memory.
_AT_ONCE = 2**18


def normalise_to_box(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Scale the coordinates of points [N, 3 + C] to 0..1 along the longest side of their box.

    Returns them as [3, N], and the lower and upper corner of the box, [3] each.
    """
    # A copy in any case, since it is changed in place below; axis by axis, which is how it is read.
    unit: Floats = np.array(points[:, :3].T, order="C")
    low, high = unit.min(1).astype(np.float64), unit.max(1).astype(np.float64)
    longest = (high - low).max()
    # Two finite float32 can lie farther apart than float32 can say.
    if longest > np.finfo(unit.dtype).max:
        unit = unit.astype(np.float64)
    unit -= low.astype(unit.dtype)[:, None]
    if longest > 0:
        unit /= unit.dtype.type(longest)
    return unit, low, high


def thin_points(points: Floats, unit: Floats, most: int, least: int = 1) -> Indices:
    """Return indices of at most `most` of the points [N, 3 + C], spread evenly, in lexicographic order.

    `unit` holds their coordinates as `normalise_to_box` gives them. Of every cell of a fine grid the point nearest to
    its middle is kept, and of those one per cell of a second grid, coarse enough that nearly `most` are left. Every
    point then lies within d, the sum of the two cells' diagonals, of a kept one. So farthest-point sampling among the
    kept points leaves gaps of at most twice the smallest possible, plus d. Clouds of `most` points or fewer keep all;
    others keep at least `least`, if they have so many places, told apart to 1 / 2**17 of the longest side.
    """
    if len(points) <= most:
        return _lexicographic_order(points)
    # On a surface a few times `most` cells are occupied: few enough to be fast, and more than are kept in the end.
    fine = 2 ** round(math.log2(1.5 * math.sqrt(most) + 1))
    kept = _cell_representatives(points, unit, fine)
    counts = {1: 1, fine: len(kept)}
    # A thin or small object in a large box occupies few cells: refine the grid until the budget can be filled.
    while len(kept) < 2 * most and fine < _FINEST and len(kept) < len(points):
        fine *= _FINER
        kept = _cell_representatives(points, unit, fine)
        counts[fine] = len(kept)
    if len(kept) > most:
        near = unit.take(kept, axis=1)
        chosen = kept[_cell_representatives(points[kept], near, _fit_grid(near, most, counts))]
        # A solid block jumps from 27 occupied cells to 64 of the next finer grid, so no grid may come near enough.
        if len(chosen) < least:
            kept = kept[_lexicographic_order(points[kept])]
            chosen = kept[farthest_points(points[kept, :3], least)]
        kept = chosen
    return kept[_lexicographic_order(points[kept])]


def farthest_points(xyz: Floats, count: int) -> Indices:
    """Return indices of `count` of xyz [M, 3] by farthest-point sampling, or of all distinct points if fewer.

    The first is farthest from the mean, every next one farthest from all before. The largest distance of a point to
    the chosen ones is at most twice the smallest possible (Gonzalez, 1985).
    """
    axes = np.ascontiguousarray(xyz.T, dtype=np.float64)
    distance = _squared_distances(axes, axes.mean(1))
    chosen = [int(distance.argmax())]
    distance = _squared_distances(axes, axes[:, chosen[0]])
    while len(chosen) < count:
        index = int(distance.argmax())
        # All points that are left lie where a chosen one does.
        if distance[index] == 0:
            break
        chosen.append(index)
        np.minimum(distance, _squared_distances(axes, axes[:, index]), out=distance)
    return np.asarray(chosen, dtype=np.int64)


def nearest_points(xyz: Floats, centres: Indices, k: int) -> Indices:
    """Return indices [n, k] of the k points of xyz [M, 3] that are nearest to each of `centres`, itself included.

    Fewer than k points are repeated, which does not change the maximum over them in a PointNet.
    """
    axes = np.ascontiguousarray(xyz.T, dtype=np.float64)
    if len(xyz) <= k:
        return np.broadcast_to(np.arange(k) % len(xyz), (len(centres), k)).copy()
    # A partition is enough, since a PointNet takes no notice of the order of neighbours.
    step = max(1, _AT_ONCE // len(xyz))
    parts = [
        np.argpartition(_squared_distances(axes[:, None], axes[:, centres[start : start + step]]), k - 1, axis=1)[:, :k]
        for start in range(0, len(centres), step)
    ]
    return np.concatenate(parts)


def _lexicographic_order(points: Floats) -> Indices:
    """Return indices that bring points [N, 3 + C] into lexicographic order."""
    # np.lexsort takes the most important key last.
    return np.lexsort(points.T[::-1]).astype(np.int64)


def _squared_distances(axes: Floats, point: Floats) -> Floats:
    """Return squared distances of points [3, ..., M] to points [3, ...]."""
    # Always summed in this order: a sum over an axis may round otherwise, and break ties by the order of the points.
    x, y, z = axes - point[..., None]
    total: Floats = x * x + y * y + z * z
    return total


def _assign_cells(unit: Floats, grid: float) -> tuple[Indices, Floats, int]:
    """Find the cell of every point on a grid of `grid` cells along the longest side.

    Returns the cells [N], the squared distances to their middles, in cells [N], and the largest possible number of
    cells.
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


def _cell_representatives(points: Floats, unit: Floats, grid: float) -> Indices:
    """Return the index of one point per cell: the one nearest to its middle, then the first in lexicographic order."""
    cells, key, count = _assign_cells(unit, grid)
    if count > _TABLE:
        used, cells = np.unique(cells, return_inverse=True)
        count = len(used)
    # Sorting all points would be the simple way, and too slow for a data worker. Instead the candidates of each cell
    # are narrowed down key by key, distance first (column -1), until every occupied cell has one.
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
    # The candidates that are left are equal to the last bit, so any of them will do.
    return rows[np.unique(cells, return_index=True)[1]]


def _fit_grid(unit: Floats, most: int, counts: Mapping[int, int]) -> float:
    """Return the number of cells along the longest side at which nearly `most` cells are occupied, and no more.

    `counts` holds occupied cells by the number along the side; one at least must be more than `most`.
    """
    low = max((float(grid), count) for grid, count in counts.items() if count <= most)
    high = min((float(grid), count) for grid, count in counts.items() if count > most)
    for attempt in range(_ATTEMPTS):
        if low[1] >= _ENOUGH * most or high[0] / low[0] < 1.03:
            break
        # Occupied cells grow as a power of the grid, 2 for a surface: interpolate on logarithmic scales, and bisect
        # in the later attempts, if that did not come near enough.
        width, growth = math.log(high[0] / low[0]), math.log(high[1] / low[1])
        share = math.log(_AIM * most / low[1]) / growth if attempt < _ATTEMPTS // 2 else 0.5
        grid = low[0] * math.exp(width * min(max(share, 0.05), 0.95))
        count = _count_occupied(unit, grid)
        if count <= most:
            low = grid, count
        else:
            high = grid, count
    return low[0]


def _count_occupied(unit: Floats, grid: float) -> int:
    """Count the cells of a grid that hold a point."""
    side = math.ceil(grid)
    x, y, z = np.minimum((unit * unit.dtype.type(grid)).astype(np.int64), side - 1)
    cells = (x * side + y) * side + z
    if side**3 > _TABLE:
        return len(np.unique(cells))
    table = np.zeros(side**3, dtype=bool)
    table[cells] = True
    return int(np.count_nonzero(table))
