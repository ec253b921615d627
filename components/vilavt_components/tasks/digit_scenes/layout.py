"""Objects of the scenes of task `digit_scenes`: what they look like, where they stand, and which digits they carry.

No question is asked and nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vilavt_components.tasks.generated.grid import Cell, max_separate_objects

SHAPES = ("square", "circle", "triangle", "diamond")
COLOURS = ("red", "green", "blue", "yellow")

Appearance = tuple[str, str]
"""(colour, shape)"""
APPEARANCES: tuple[Appearance, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class SceneRules:
    """The settings of the task that layouts and questions depend on."""

    cells: int
    objects: int
    no_zoom: float
    several: float
    own_colours: bool
    frames: int


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene."""

    colour: str
    shape: str
    cell: Cell
    digit: int

    @property
    def name(self) -> str:
        """Colour and shape in words; no other object of the scene has both."""
        return f"{self.colour} {self.shape}"

    @property
    def appearance(self) -> Appearance:
        """Colour and shape as a pair."""
        return self.colour, self.shape


def max_objects(cells: int) -> int:
    """Return the most objects that any scene of `cells` x `cells` can have, whatever is asked about it."""
    # A question about a shape needs a colour that no other object has, and the other way about.
    others = min((len(COLOURS) - 1) * len(SHAPES), len(COLOURS) * (len(SHAPES) - 1))
    return min(max_separate_objects(cells), others + 1)


def sort_in_reading_order(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """Sort objects row after row, each from left to right."""
    return tuple(sorted(objects, key=lambda item: item.cell[::-1]))


def choose_appearances(
    rng: np.random.Generator,
    count: int,
    own_colours: bool,
    first: Sequence[Appearance] = (),
    banned: Iterable[Appearance] = (),
) -> list[Appearance]:
    """Draw `count` different appearances that begin with `first` and contain none of `banned`.

    With `own_colours` no two of them have one colour.
    """
    banned = {*banned, *first}
    if not own_colours:
        others = [appearance for appearance in APPEARANCES if appearance not in banned]
        return [*first, *(others[i] for i in rng.permutation(len(others))[: count - len(first)])]
    used = {colour for colour, _ in first}
    # The colour is drawn first, then one of the shapes that are allowed in it.
    colours = [colour for colour in COLOURS if colour not in used]
    appearances = list(first)
    for i in rng.permutation(len(colours))[: count - len(first)]:
        shapes = [shape for shape in SHAPES if (colours[i], shape) not in banned]
        appearances.append((colours[i], shapes[rng.integers(len(shapes))]))
    return appearances


def choose_appearance(rng: np.random.Generator) -> Appearance:
    """Draw any colour with any shape."""
    return APPEARANCES[rng.integers(len(APPEARANCES))]


def place_objects(
    appearances: Sequence[Appearance], places: Sequence[Cell], digits: Sequence[int] | np.ndarray
) -> list[SceneObject]:
    """Make objects from appearances, cells and digits, one from each."""
    return [
        SceneObject(colour, shape, cell, int(digit))
        for (colour, shape), cell, digit in zip(appearances, places, digits, strict=True)
    ]
