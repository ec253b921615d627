"""Family `one_image` of task `digit_scenes`: the digit, the shape or the colour of one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.layout import (
    APPEARANCES,
    COLOURS,
    SHAPES,
    Appearance,
    SceneObject,
    SceneRules,
    place_objects,
    sort_in_reading_order,
)
from vilavt_components.tasks.digit_scenes.question import (
    AnswerKind,
    SceneQuestion,
    list_cells,
    list_objects,
    span_of_objects,
)
from vilavt_components.tasks.generated.grid import Cell, cells_from_numbers, separate_cells

OneImageKind = Literal["digit", "shape", "colour", "close"]
"""The property asked for; "close" is the digit of an object that fills the image."""
_NO_ZOOM: tuple[OneImageKind, ...] = ("shape", "colour", "colour", "close")
"""Colour is in twice: in a thought it precedes the shape it is looked up by, which is harder to learn."""


def make_one_image(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Make a question about one object of a scene, or about the only object of a close-up."""
    # Whether a zoom is needed, and whether it shows two digits.
    draws = rng.random(2)
    if draws[0] >= rules.no_zoom:
        paired = bool(draws[1] < rules.several)
        places = separate_cells(rng, rules.cells, rules.objects, paired)
        return _make_question(rules, "digit", _place_objects(rng, rules, places, "digit", paired), paired)
    kind = _NO_ZOOM[int(rng.integers(len(_NO_ZOOM)))]
    if kind == "close":
        return _make_close_up(_place_objects(rng, rules, [(0, 0)], kind, False)[0])
    places = cells_from_numbers(rng.permutation(rules.cells**2)[: rules.objects], rules.cells)
    return _make_question(rules, kind, _place_objects(rng, rules, places, kind, False), False)


def _make_close_up(asked: SceneObject) -> SceneQuestion:
    # The overview shows the digit large enough, so the answer is all that there is to think.
    question, answer, answer_kind = _ask_about(asked, "close")
    return SceneQuestion("one_image", "close", question, answer, answer_kind, ((asked,),), answer, is_close_up=True)


def _make_question(
    rules: SceneRules, kind: OneImageKind, objects: Sequence[SceneObject], paired: bool
) -> SceneQuestion:
    asked, meant, ordered = objects[0], objects[: 1 + paired], sort_in_reading_order(objects)
    question, answer, answer_kind = _ask_about(asked, kind)
    # The thought restates what the question names, and looks the rest up: a question about a colour names the shape.
    restated = f"{asked.shape} {asked.colour}" if kind == "colour" else asked.name
    thought = f"see {list_objects(ordered, rules.cells)}; so {restated} {list_cells(meant, rules.cells)}"
    zoom = (0, span_of_objects(meant))
    return SceneQuestion(
        "one_image",
        kind,
        question,
        answer,
        answer_kind,
        (ordered,),
        thought,
        zooms=(zoom,) if kind == "digit" else (),
        inquiry=asked.name,
        zoom_thought=answer,
        needless_zoom=None if kind == "digit" else zoom,
        shows_several=paired,
    )


def _ask_about(asked: SceneObject, kind: OneImageKind) -> tuple[str, str, AnswerKind]:
    """Write the question about an object, its answer, and the kind of that."""
    if kind == "shape":
        return f"what shape is the {asked.colour} object?", asked.shape, "text"
    if kind == "colour":
        return f"what colour is the {asked.shape}?", asked.colour, "text"
    return f"what digit is on the {asked.name}?", str(asked.digit), "number"


def _place_objects(
    rng: np.random.Generator, rules: SceneRules, places: Sequence[Cell], kind: OneImageKind, paired: bool
) -> list[SceneObject]:
    """Draw objects for places; the first is the asked object's, the second its partner's if `paired`."""
    appearances = _choose_appearances(rng, len(places), kind, rules.own_colours)
    digits = rng.integers(10, size=len(places))
    if paired:
        # Two different digits in one crop, so that only the inquiry can decide.
        digits[1] = (digits[0] + rng.integers(1, 10)) % 10
    return place_objects(appearances, places, digits)


def _choose_appearances(
    rng: np.random.Generator, count: int, kind: OneImageKind, own_colours: bool
) -> list[Appearance]:
    """Draw `count` different appearances; no other has the property that the question names the first one by."""
    if own_colours:
        return _choose_own_colours(rng, count, kind)
    # Two objects with the property that the question names would leave two right answers.
    first = APPEARANCES[rng.integers(len(APPEARANCES))]
    others = [
        appearance
        for appearance in APPEARANCES
        if appearance != first
        and not (kind == "shape" and appearance[0] == first[0])
        and not (kind == "colour" and appearance[1] == first[1])
    ]
    return [first, *(others[i] for i in rng.permutation(len(others))[: count - 1])]


def _choose_own_colours(rng: np.random.Generator, count: int, kind: OneImageKind) -> list[Appearance]:
    """Draw `count` appearances of different colours; with kind "colour" no other has the first one's shape."""
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:count]]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    if kind == "colour":
        others = [shape for shape in SHAPES if shape != shapes[0]]
        shapes[1:] = [others[i] for i in rng.integers(len(others), size=count - 1)]
    return list(zip(colours, shapes, strict=True))
