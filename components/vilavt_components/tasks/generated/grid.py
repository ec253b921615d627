"""The square grid that the objects of a generated scene stand on, and how they are spread over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Cell = tuple[int, int]
"""(column, row)"""
Span = tuple[int, int, int, int]
"""Cells: (first column, first row, column after the last, row after the last)."""


def scatter_cells(rng: np.random.Generator, cells: int, count: int, first: Cell | None = None) -> list[Cell]:
    """Draw `count` different cells of a grid of `cells` x `cells`, in any arrangement; `first` leads them if given."""
    places = cells_from_numbers(rng.permutation(cells**2), cells)
    if first is not None:
        places.remove(first)
        places.insert(0, first)
    return places[:count]


def separate_cells(rng: np.random.Generator, cells: int, count: int, paired: bool) -> list[Cell]:
    """Draw `count` different cells so that the neighbours of the first stay empty, or hold only the second if `paired`.

    The first cell is the asked object's, the second its partner's, which a zoom shows together with it.
    """
    first = cells_from_numbers(rng.integers(cells**2, size=1), cells)[0]
    around = neighbour_cells(first, cells)
    places = [first]
    if paired:
        places.append(around[rng.integers(len(around))])
    # A third object beside the asked one would leave open which of the two the zoom must include.
    free = [cell for cell in cells_from_numbers(np.arange(cells**2), cells) if cell != first and cell not in around]
    return places + [free[i] for i in rng.permutation(len(free))[: count - len(places)]]


def max_separate_objects(cells: int) -> int:
    """Return how many objects `separate_cells` can always place: all cells but the first one's neighbours."""
    return cells**2 - min(4, 2 * (cells - 1))


def cells_from_numbers(numbers: Sequence[int] | np.ndarray, cells: int) -> list[Cell]:
    """Return cells by their numbers, counted from 0 in reading order."""
    return [(int(number) % cells, int(number) // cells) for number in numbers]


def cell_number(cell: Cell, cells: int) -> int:
    """Return the number of a cell, counted from 0 in reading order: along x, then along y."""
    return cell[1] * cells + cell[0]


def neighbour_cells(cell: Cell, cells: int) -> list[Cell]:
    """Return the cells right beside, above and below one, as far as the grid reaches."""
    column, row = cell
    near = [(column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)]
    return [(c, r) for c, r in near if 0 <= c < cells and 0 <= r < cells]


def enclosing_span(places: Iterable[Cell]) -> Span:
    """Return the smallest rectangle of cells that holds all of `places`."""
    columns, rows = zip(*places, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1
