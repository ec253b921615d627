"""Objects of the clouds of task `shape_clouds`, and the questions about them; no point is sampled here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vilavt_components.tasks.generated.grid import (
    Cell,
    Span,
    cell_number,
    enclosing_span,
    scatter_cells,
    separate_cells,
)

SHAPES = ("cube", "sphere", "cylinder", "cone", "torus")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("low", "mid", "high")
_TORUS = SHAPES.index("torus")

Mark = Literal["bands", "stripes", "spirals", "dots", "checks"]
CloudKind = Literal["mark", "nearest", "close", "shape", "taller"]
_FAMILY = {"mark": "marks", "nearest": "marks", "close": "marks", "shape": "shapes", "taller": "shapes"}


@dataclass(frozen=True)
class CloudObject:
    """An object of a scene."""

    colour: str
    shape: str
    size: str
    mark: str
    cell: Cell

    @property
    def name(self) -> str:
        """Colour and shape in words; no other object of the scene has the colour."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class CloudRules:
    """The settings of the task that layouts and questions depend on."""

    cells: int
    objects: int
    marks: tuple[str, ...]
    no_zoom: float
    close: float
    nearest: float
    several: float


@dataclass(frozen=True)
class CloudQuestion:
    """A question about a cloud, its answer, and the thought that leads to it.

    Thoughts are made to be learned by a small model: every word is one token wherever it stands.
    """

    kind: CloudKind
    question: str
    answer: str
    objects: tuple[CloudObject, ...]
    thought: str
    """The thought about the overview: all objects in the order of the colours, then the one that is asked about."""
    zoom: Span | None = None
    """The cells zoomed into; None if the overview answers."""
    inquiry: str = ""
    shows_several: bool = False
    """True if the zoom shows two marks, of which the inquiry names one."""

    @property
    def family(self) -> str:
        """The topic of the question, marks or shapes."""
        return _FAMILY[self.kind]


def make_question(rng: np.random.Generator, rules: CloudRules) -> CloudQuestion:
    """Draw a question about a scene, or about the only object of a close-up."""
    # Whether a zoom is needed; the kind of question; whether the zoom shows two marks, or else the kind without a zoom.
    draws = rng.random(3)
    if draws[0] < rules.no_zoom:
        if draws[1] < rules.close:
            return _ask_close_up(rng, rules)
        return _ask_shape(rng, rules) if draws[2] < 0.5 else _ask_taller(rng, rules)
    if draws[1] < rules.nearest:
        return _ask_nearest(rng, rules)
    return _ask_mark(rng, rules, paired=bool(draws[2] < rules.several))


# --- Kinds ------------------------------------------------------------------------------------------


def _ask_mark(rng: np.random.Generator, rules: CloudRules, paired: bool) -> CloudQuestion:
    """Ask for the mark of an object by name; with `paired` another object stands right beside it."""
    objects = _place_objects(
        rng, rules, separate_cells(rng, rules.cells, rules.objects, paired), _choose_shapes(rng, rules.objects)
    )
    if paired:
        # Two different marks in one region, so that only the inquiry can decide.
        marks = [mark for mark in rules.marks if mark != objects[0].mark]
        objects[1] = replace(objects[1], mark=marks[rng.integers(len(marks))])
    asked, meant = objects[0], objects[: 1 + paired]
    cells = " ".join(str(cell_number(item.cell, rules.cells)) for item in meant)
    thought = f"{_describe_objects(objects, rules)}; so {asked.name} {cells}"
    return CloudQuestion(
        "mark",
        _mark_question(asked),
        asked.mark,
        tuple(objects),
        thought,
        enclosing_span(item.cell for item in meant),
        asked.name,
        paired,
    )


def _ask_nearest(rng: np.random.Generator, rules: CloudRules) -> CloudQuestion:
    """Ask for the mark of the object right beside another one, which is named by its shape."""
    # No other object has the first one's shape, by which the question names it.
    first = int(rng.integers(len(SHAPES)))
    shapes = [first, *_choose_shapes(rng, rules.objects - 1, banned=(first,))]
    objects = _place_objects(rng, rules, separate_cells(rng, rules.cells, rules.objects, True), shapes)
    other, asked = objects[:2]
    question = f"what mark is on the object nearest the {other.shape}?"
    so = (
        f"{other.shape} {cell_number(other.cell, rules.cells)} near {asked.name} {cell_number(asked.cell, rules.cells)}"
    )
    thought = f"{_describe_objects(objects, rules)}; so {so}"
    return CloudQuestion(
        "nearest", question, asked.mark, tuple(objects), thought, enclosing_span([asked.cell]), asked.name
    )


def _ask_close_up(rng: np.random.Generator, rules: CloudRules) -> CloudQuestion:
    """Ask for the mark of the only object, which fills the cloud."""
    # The overview shows the mark large enough, so the thought is the answer.
    (item,) = _place_objects(rng, rules, [(0, 0)], _choose_shapes(rng, 1))
    return CloudQuestion("close", _mark_question(item), item.mark, (item,), item.mark)


def _ask_shape(rng: np.random.Generator, rules: CloudRules) -> CloudQuestion:
    objects = _place_objects(
        rng, rules, scatter_cells(rng, rules.cells, rules.objects), _choose_shapes(rng, rules.objects)
    )
    asked = objects[0]
    thought = f"{_describe_objects(objects, rules)}; so {asked.name} {cell_number(asked.cell, rules.cells)}"
    return CloudQuestion("shape", f"what shape is the {asked.colour} object?", asked.shape, tuple(objects), thought)


def _ask_taller(rng: np.random.Generator, rules: CloudRules) -> CloudQuestion:
    """Ask which of two objects is taller, each named by a shape that no other object has."""
    # A torus, the last shape, has one height only and cannot be compared.
    pair = rng.permutation(_TORUS)[:2].tolist()
    # Two objects of one named shape would leave it open which is meant.
    shapes = [*pair, *_choose_shapes(rng, rules.objects - 2, banned=pair)]
    sizes = [*rng.permutation(len(SIZES))[:2].tolist(), *rng.integers(len(SIZES), size=rules.objects - 2).tolist()]
    objects = _place_objects(rng, rules, scatter_cells(rng, rules.cells, rules.objects), shapes, sizes)
    one, other = objects[:2]
    answer = one if sizes[0] > sizes[1] else other
    so = f"{one.shape} {one.size} {other.shape} {other.size}"
    question = f"which is taller, the {one.shape} or the {other.shape}?"
    return CloudQuestion(
        "taller", question, answer.shape, tuple(objects), f"{_describe_objects(objects, rules)}; so {so}"
    )


def _mark_question(asked: CloudObject) -> str:
    return f"what mark is on the {asked.name}?"


# --- Scenes -----------------------------------------------------------------------------------------


def _choose_shapes(rng: np.random.Generator, count: int, banned: Sequence[int] = ()) -> list[int]:
    allowed = [number for number in range(len(SHAPES)) if number not in banned]
    return [allowed[i] for i in rng.integers(len(allowed), size=count)]


def _place_objects(
    rng: np.random.Generator,
    rules: CloudRules,
    places: Sequence[Cell],
    shapes: Sequence[int],
    sizes: Sequence[int] | None = None,
) -> list[CloudObject]:
    """Draw objects for places, no two of one colour."""
    count = len(places)
    colours, marks = rng.permutation(len(COLOURS))[:count], rng.integers(len(rules.marks), size=count)
    drawn = rng.integers(len(SIZES), size=count) if sizes is None else sizes
    return [
        # A torus is always flat, whatever size was drawn for it.
        CloudObject(COLOURS[colour], SHAPES[shape], SIZES[0 if shape == _TORUS else size], rules.marks[mark], cell)
        for colour, shape, size, mark, cell in zip(colours, shapes, drawn, marks, places, strict=True)
    ]


def _describe_objects(objects: Sequence[CloudObject], rules: CloudRules) -> str:
    """Write every object as "colour shape cell", in the order of the colours."""
    # Points have no reading order, and every colour stands in a scene once at most.
    ordered = sorted(objects, key=lambda item: COLOURS.index(item.colour))
    return "see " + " ".join(f"{item.name} {cell_number(item.cell, rules.cells)}" for item in ordered)
