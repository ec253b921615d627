"""What a family of task `digit_scenes` makes of random numbers: scenes, a question, and the way to its answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vilavt_components.tasks.digit_scenes.layout import Cell, Span, Thing

AnswerKind = Literal["number", "text", "yes_no", "box"]


@dataclass(frozen=True)
class Item:
    """A question and its answer before anything is drawn.

    Words of thoughts are the same tokens wherever they stand; a place comes before what stands there; what the
    question says of the asked object is restated first, and the rest is looked up from there.
    """

    family: str
    kind: str
    question: str
    answer: str
    """Empty where the answer is the box of `target`."""
    answer_kind: AnswerKind
    scenes: tuple[tuple[Thing, ...], ...]
    """The objects of every image, in reading order."""
    thought: str
    """What the first view shows."""
    looks: tuple[tuple[int, Span], ...] = ()
    """What is looked at under one inquiry: (image, its cells); empty where the first view answers."""
    inquiry: str = ""
    found: str = ""
    """What the zoom shows."""
    spare: tuple[int, Span] | None = None
    """What could be looked at, for nothing: (image, its cells)."""
    several: bool = False
    """Whether a crop holds two digits, of which the inquiry names one."""
    target: tuple[int, Thing] | None = None
    """The image and the object whose box is the answer."""
    close: bool = False
    """Whether the one object fills the image."""
    film: bool = False
    """Whether the images are frames of one film: objects and ground are drawn alike in all."""


def numbered(cell: Cell, cells: int) -> int:
    """The number of a cell, counted from 0 in reading order."""
    return cell[1] * cells + cell[0]


def listed(things: Iterable[Thing], cells: int) -> str:
    """Every object as "cell colour shape"."""
    return " ".join(f"{numbered(thing.cell, cells)} {thing.name}" for thing in things)


def placed(things: Sequence[Thing], cells: int) -> str:
    """The cells of some objects; "none" where there are none."""
    return " ".join(str(numbered(thing.cell, cells)) for thing in things) or "none"


def yes_no(truth: bool) -> str:
    """The answer to a question of yes or no."""
    return "yes" if truth else "no"
