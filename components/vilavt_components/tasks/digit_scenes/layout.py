"""What stands where in the scenes of task `digit_scenes`: names, places, digits; nothing is asked or drawn here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("square", "circle", "triangle", "diamond")
COLOURS = ("red", "green", "blue", "yellow")

Cell = tuple[int, int]
"""(column, row)"""
Span = tuple[int, int, int, int]
"""Cells: (first column, first row, column after the last, row after the last)."""
Look = tuple[str, str]
"""(colour, shape)"""
LOOKS: tuple[Look, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class Rules:
    """What scenes and questions are made by; as in the task's settings."""

    cells: int
    objects: int
    no_zoom: float
    several: float
    own_colours: bool
    frames: int


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    colour: str
    shape: str
    cell: Cell
    digit: int

    @property
    def name(self) -> str:
        """Colour and shape, which no other object of the scene has together."""
        return f"{self.colour} {self.shape}"

    @property
    def look(self) -> Look:
        """Colour and shape, apart."""
        return self.colour, self.shape


def most_objects(cells: int) -> int:
    """Most objects a scene of `cells` x `cells` can have so that the asked one may stand alone anywhere."""
    around = min(4, 2 * (cells - 1))
    # A question about a shape needs a colour that no other object has, and the other way about.
    others = min((len(COLOURS) - 1) * len(SHAPES), len(COLOURS) * (len(SHAPES) - 1))
    return min(cells**2 - around, others + 1)


def in_order(things: Iterable[Thing]) -> tuple[Thing, ...]:
    """The things in reading order: row after row, left to right."""
    return tuple(sorted(things, key=lambda thing: thing.cell[::-1]))


def span_of(things: Iterable[Thing]) -> Span:
    """The cells from the first of some things to the last."""
    cells = [thing.cell for thing in things]
    columns, rows = [column for column, _ in cells], [row for _, row in cells]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


# --- Places ----------------------------------------------------------------------------------------


def scattered(rng: np.random.Generator, cells: int, count: int, first: Cell | None = None) -> list[Cell]:
    """`count` different cells anywhere; the first as given."""
    places = to_cells(rng.permutation(cells**2), cells)
    if first is not None:
        places.remove(first)
        places.insert(0, first)
    return places[:count]


def apart(rng: np.random.Generator, cells: int, count: int, paired: bool) -> list[Cell]:
    """`count` different cells, none beside, above or below the first, but for the second where `paired`."""
    first = to_cells(rng.integers(cells**2, size=1), cells)[0]
    around = _around(first, cells)
    places = [first]
    if paired:
        places.append(around[rng.integers(len(around))])
    # The others keep away from the asked object, so that whom it is seen with is plain to see.
    free = [cell for cell in to_cells(np.arange(cells**2), cells) if cell != first and cell not in around]
    return places + [free[i] for i in rng.permutation(len(free))[: count - len(places)]]


def to_cells(numbers: Sequence[int] | np.ndarray, cells: int) -> list[Cell]:
    """Cells by their numbers, counted from 0 in reading order."""
    return [(int(number) % cells, int(number) // cells) for number in numbers]


def _around(cell: Cell, cells: int) -> list[Cell]:
    column, row = cell
    near = [(column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)]
    return [(c, r) for c, r in near if 0 <= c < cells and 0 <= r < cells]


# --- Looks and digits --------------------------------------------------------------------------------


def looks_with(
    rng: np.random.Generator, count: int, own_colours: bool, first: Sequence[Look] = (), banned: Iterable[Look] = ()
) -> list[Look]:
    """`count` different looks, the first ones as given and none of the banned; by `own_colours` of as many colours."""
    banned = {*banned, *first}
    if not own_colours:
        others = [look for look in LOOKS if look not in banned]
        return [*first, *(others[i] for i in rng.permutation(len(others))[: count - len(first)])]
    colours = [colour for colour in COLOURS if colour not in {colour for colour, _ in first}]
    chosen = list(first)
    for i in rng.permutation(len(colours))[: count - len(first)]:
        shapes = [shape for shape in SHAPES if (colours[i], shape) not in banned]
        chosen.append((colours[i], shapes[rng.integers(len(shapes))]))
    return chosen


def some_look(rng: np.random.Generator) -> Look:
    """Any colour with any shape."""
    return LOOKS[rng.integers(len(LOOKS))]


def put(looks: Sequence[Look], places: Sequence[Cell], digits: Sequence[int] | np.ndarray) -> list[Thing]:
    """Objects of these looks, on these places, with these digits."""
    return [
        Thing(colour, shape, cell, int(digit))
        for (colour, shape), cell, digit in zip(looks, places, digits, strict=True)
    ]
