"""What stands where in the clouds of task `shape_clouds`, and what is asked about it; nothing is sampled here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.layout import Cell, Span, apart, scattered

SHAPES = ("cube", "sphere", "cylinder", "cone", "torus")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("low", "mid", "high")
_TORUS = SHAPES.index("torus")

Mark = Literal["bands", "stripes", "spirals", "dots", "checks"]
Kind = Literal["mark", "nearest", "close", "shape", "taller"]
_FAMILY = {"mark": "marks", "nearest": "marks", "close": "marks", "shape": "shapes", "taller": "shapes"}


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    colour: str
    shape: str
    size: str
    mark: str
    cell: Cell

    @property
    def name(self) -> str:
        """Colour and shape; no other object of the scene has its colour."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Rules:
    """What scenes and questions are made by; as in the task's settings."""

    cells: int
    objects: int
    marks: tuple[str, ...]
    no_zoom: float
    close: float
    nearest: float
    several: float


@dataclass(frozen=True)
class Item:
    """A question, its answer, and the way to it. Words of thoughts are the same tokens wherever they stand."""

    kind: Kind
    question: str
    answer: str
    things: tuple[Thing, ...]
    thought: str
    """What the overview shows: everything in the order of the colours, then what the question is about."""
    look: Span | None = None
    """The cells that are looked at; None where the overview answers."""
    inquiry: str = ""
    several: bool = False
    """Whether the region holds two marks, of which the inquiry names one."""

    @property
    def family(self) -> str:
        """Whether it is about marks or about shapes."""
        return _FAMILY[self.kind]


def draw_item(rng: np.random.Generator, rules: Rules) -> Item:
    """A question about a scene, or about the only object of one."""
    draws = rng.random(3)
    if draws[0] < rules.no_zoom:
        if draws[1] < rules.close:
            return _close(rng, rules)
        return _shape(rng, rules) if draws[2] < 0.5 else _taller(rng, rules)
    if draws[1] < rules.nearest:
        return _nearest(rng, rules)
    return _mark(rng, rules, paired=bool(draws[2] < rules.several))


# --- Kinds ------------------------------------------------------------------------------------------


def _mark(rng: np.random.Generator, rules: Rules, paired: bool) -> Item:
    """Asks for the mark of an object by name; with `paired` another one stands right beside it."""
    things = _things(rng, rules, apart(rng, rules.cells, rules.objects, paired), _shapes(rng, rules.objects))
    if paired:  # two different marks in one region: the inquiry decides
        marks = [mark for mark in rules.marks if mark != things[0].mark]
        things[1] = replace(things[1], mark=marks[rng.integers(len(marks))])
    asked, meant = things[0], things[: 1 + paired]
    cells = " ".join(str(_numbered(thing.cell, rules)) for thing in meant)
    thought = f"{_seen(things, rules)}; so {asked.name} {cells}"
    return Item("mark", _mark_question(asked), asked.mark, tuple(things), thought, _span(meant), asked.name, paired)


def _nearest(rng: np.random.Generator, rules: Rules) -> Item:
    """Asks for the mark of the one right beside another, whose shape no other object has."""
    first = int(rng.integers(len(SHAPES)))
    shapes = [first, *_shapes(rng, rules.objects - 1, banned=(first,))]
    things = _things(rng, rules, apart(rng, rules.cells, rules.objects, True), shapes)
    other, asked = things[:2]
    question = f"what mark is on the object nearest the {other.shape}?"
    so = f"{other.shape} {_numbered(other.cell, rules)} near {asked.name} {_numbered(asked.cell, rules)}"
    thought = f"{_seen(things, rules)}; so {so}"
    return Item("nearest", question, asked.mark, tuple(things), thought, _span([asked]), asked.name)


def _close(rng: np.random.Generator, rules: Rules) -> Item:
    """Asks for the mark of the only object, which fills the cloud."""
    (thing,) = _things(rng, rules, [(0, 0)], _shapes(rng, 1))
    return Item("close", _mark_question(thing), thing.mark, (thing,), thing.mark)


def _shape(rng: np.random.Generator, rules: Rules) -> Item:
    things = _things(rng, rules, scattered(rng, rules.cells, rules.objects), _shapes(rng, rules.objects))
    asked = things[0]
    thought = f"{_seen(things, rules)}; so {asked.name} {_numbered(asked.cell, rules)}"
    return Item("shape", f"what shape is the {asked.colour} object?", asked.shape, tuple(things), thought)


def _taller(rng: np.random.Generator, rules: Rules) -> Item:
    """Asks which of two is taller, both of a shape that no other object has; a torus is always flat."""
    pair = rng.permutation(_TORUS)[:2].tolist()
    shapes = [*pair, *_shapes(rng, rules.objects - 2, banned=pair)]
    sizes = [*rng.permutation(len(SIZES))[:2].tolist(), *rng.integers(len(SIZES), size=rules.objects - 2).tolist()]
    things = _things(rng, rules, scattered(rng, rules.cells, rules.objects), shapes, sizes)
    one, other = things[:2]
    answer = one if sizes[0] > sizes[1] else other
    so = f"{one.shape} {one.size} {other.shape} {other.size}"
    question = f"which is taller, the {one.shape} or the {other.shape}?"
    return Item("taller", question, answer.shape, tuple(things), f"{_seen(things, rules)}; so {so}")


def _mark_question(asked: Thing) -> str:
    return f"what mark is on the {asked.name}?"


# --- Scenes -----------------------------------------------------------------------------------------


def _shapes(rng: np.random.Generator, count: int, banned: Sequence[int] = ()) -> list[int]:
    allowed = [number for number in range(len(SHAPES)) if number not in banned]
    return [allowed[i] for i in rng.integers(len(allowed), size=count)]


def _things(
    rng: np.random.Generator,
    rules: Rules,
    places: Sequence[Cell],
    shapes: Sequence[int],
    sizes: Sequence[int] | None = None,
) -> list[Thing]:
    """Objects on these places, no two of one colour."""
    count = len(places)
    colours, marks = rng.permutation(len(COLOURS))[:count], rng.integers(len(rules.marks), size=count)
    drawn = rng.integers(len(SIZES), size=count) if sizes is None else sizes
    return [
        Thing(COLOURS[colour], SHAPES[shape], SIZES[0 if shape == _TORUS else size], rules.marks[mark], cell)
        for colour, shape, size, mark, cell in zip(colours, shapes, drawn, marks, places, strict=True)
    ]


def _seen(things: Sequence[Thing], rules: Rules) -> str:
    """Every object as "colour shape cell", in the order of the colours: points have no order to go by."""
    ordered = sorted(things, key=lambda thing: COLOURS.index(thing.colour))
    return "see " + " ".join(f"{thing.name} {_numbered(thing.cell, rules)}" for thing in ordered)


def _numbered(cell: Cell, rules: Rules) -> int:
    """The number of a cell, counted from 0 along x, then along y."""
    return cell[1] * rules.cells + cell[0]


def _span(things: Sequence[Thing]) -> Span:
    columns, rows = [thing.cell[0] for thing in things], [thing.cell[1] for thing in things]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1
