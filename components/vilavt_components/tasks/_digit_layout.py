"""What stands where in a scene of task `digit_scenes`, and what is asked; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SHAPES = ("square", "circle", "triangle", "diamond")
COLOURS = ("red", "green", "blue", "yellow")

Cell = tuple[int, int]
"""(column, row)"""
Kind = Literal["digit", "shape", "colour", "close"]
"""What is asked for: a digit, a shape, a colour, or the digit of an object that fills the picture."""
_NO_ZOOM: tuple[Kind, ...] = ("shape", "colour", "colour", "close")
"""Colours twice: what stands before a shape is harder to look up than what stands after a colour."""


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


@dataclass(frozen=True)
class Scene:
    """A scene and a question about one of its objects; seen from close by, it is the only one, in the only cell."""

    things: tuple[Thing, ...]
    """In reading order: row after row, left to right."""
    asked: Thing
    partner: Thing | None
    """The one object in a cell beside, above or below the asked one; only where a digit is asked for."""
    kind: Kind

    @property
    def zoom(self) -> tuple[int, int, int, int]:
        """The cells to look at, (first column, first row, column after the last, row after the last)."""
        cells = [thing.cell for thing in (self.asked, self.partner) if thing is not None]
        columns, rows = [column for column, _ in cells], [row for _, row in cells]
        return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def most_objects(cells: int) -> int:
    """Most objects a scene of `cells` x `cells` can have so that the asked one may stand alone anywhere."""
    around = min(4, 2 * (cells - 1))
    # A question about a shape needs a colour that no other object has, and the other way about.
    others = min((len(COLOURS) - 1) * len(SHAPES), len(COLOURS) * (len(SHAPES) - 1))
    return min(cells**2 - around, others + 1)


def lay_out(
    rng: np.random.Generator, cells: int, objects: int, no_zoom: float, several: float, own_colours: bool
) -> Scene:
    """Draw a scene of `objects` in `cells` x `cells`; shares as in the task's settings."""
    draws = rng.random(2)
    if draws[0] < no_zoom:
        kind = _NO_ZOOM[int(rng.integers(len(_NO_ZOOM)))]
        if kind == "close":
            return _scene(rng, [(0, 0)], kind, False, own_colours)
        places = _cells(rng.permutation(cells**2)[:objects], cells)
        return _scene(rng, places, kind, False, own_colours)
    paired = bool(draws[1] < several)
    first = _cells(rng.integers(cells**2, size=1), cells)[0]
    around = _around(first, cells)
    places = [first]
    if paired:
        places.append(around[rng.integers(len(around))])
    # The others keep away from the asked object, so that whom it is seen with is plain to see.
    free = [cell for cell in _cells(np.arange(cells**2), cells) if cell != first and cell not in around]
    places += [free[i] for i in rng.permutation(len(free))[: objects - len(places)]]
    return _scene(rng, places, "digit", paired, own_colours)


def _scene(rng: np.random.Generator, places: Sequence[Cell], kind: Kind, paired: bool, own_colours: bool) -> Scene:
    """Put looks and digits on places; the first place is the asked object's, the second its partner's."""
    names = _names(rng, len(places), kind, own_colours)
    digits = rng.integers(10, size=len(places))
    if paired:  # two different digits in one crop: the inquiry decides
        digits[1] = (digits[0] + rng.integers(1, 10)) % 10
    things = [
        Thing(colour, shape, cell, int(digit))
        for (colour, shape), cell, digit in zip(names, places, digits, strict=True)
    ]
    ordered = tuple(sorted(things, key=lambda thing: thing.cell[::-1]))
    return Scene(ordered, things[0], things[1] if paired else None, kind)


def _names(rng: np.random.Generator, count: int, kind: Kind, own_colours: bool) -> list[tuple[str, str]]:
    """`count` different (colour, shape); what the question names of the first one, no other has."""
    if own_colours:
        return _own_colours(rng, count, kind)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    first = pairs[rng.integers(len(pairs))]
    others = [
        pair
        for pair in pairs
        if pair != first
        and not (kind == "shape" and pair[0] == first[0])
        and not (kind == "colour" and pair[1] == first[1])
    ]
    return [first, *(others[i] for i in rng.permutation(len(others))[: count - 1])]


def _own_colours(rng: np.random.Generator, count: int, kind: Kind) -> list[tuple[str, str]]:
    """`count` (colour, shape), no two of one colour; the first one's shape is its own where the question names it."""
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:count]]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    if kind == "colour":
        others = [shape for shape in SHAPES if shape != shapes[0]]
        shapes[1:] = [others[i] for i in rng.integers(len(others), size=count - 1)]
    return list(zip(colours, shapes, strict=True))


def _cells(numbers: Sequence[int] | np.ndarray, cells: int) -> list[Cell]:
    return [(int(number) % cells, int(number) // cells) for number in numbers]


def _around(cell: Cell, cells: int) -> list[Cell]:
    column, row = cell
    near = [(column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)]
    return [(c, r) for c, r in near if 0 <= c < cells and 0 <= r < cells]
