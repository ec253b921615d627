"""Family `two_images` of task `digit_scenes`: questions of yes or no that compare an object of two scenes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.layout import (
    Appearance,
    SceneObject,
    SceneRules,
    choose_appearance,
    choose_appearances,
    place_objects,
    sort_in_reading_order,
)
from vilavt_components.tasks.digit_scenes.question import (
    SceneQuestion,
    list_cells,
    list_objects,
    span_of_objects,
    yes_no,
)
from vilavt_components.tasks.generated.grid import Cell, cells_from_numbers, scatter_cells, separate_cells

TwoImageKind = Literal["both", "same_place", "same_digit", "larger", "above"]
_NO_ZOOM: tuple[TwoImageKind, ...] = ("both", "same_place")
_ZOOM: tuple[TwoImageKind, ...] = ("same_digit", "larger", "above")
_QUESTIONS: dict[TwoImageKind, str] = {
    "both": "do both images have a {}?",
    "same_place": "is the {} in the same place in both images?",
    "same_digit": "is the digit on the {} the same in both images?",
    "larger": "is the digit on the {} larger in the second image?",
    "above": "is the digit on the {} larger than 4?",
}


def make_two_images(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Make a question about an object of two scenes; both answers are equally likely.

    `both` and `same_place` need no zoom, `same_digit` and `larger` zoom into both images under one inquiry, and
    `above` zooms into the image that has the object.
    """
    # Whether a zoom is needed, whether it shows two digits, and the answer.
    draws = rng.random(3)
    # The scenes are made to fit the answer, so both answers are equally likely.
    truth, asked = bool(draws[2] < 0.5), choose_appearance(rng)
    if draws[0] < rules.no_zoom:
        kind = _NO_ZOOM[rng.integers(len(_NO_ZOOM))]
        return _make_question(rules, kind, truth, asked, _overview_scenes(rng, rules, kind, truth, asked), False)
    kind, paired = _ZOOM[rng.integers(len(_ZOOM))], bool(draws[1] < rules.several)
    return _make_question(rules, kind, truth, asked, _zoom_scenes(rng, rules, kind, truth, asked, paired), paired)


def _make_question(
    rules: SceneRules, kind: TwoImageKind, truth: bool, asked: Appearance, scenes: list[list[SceneObject]], paired: bool
) -> SceneQuestion:
    """Write the question about two scenes; where a scene has the asked object it comes first, then its partner."""
    name = " ".join(asked)
    meant = [objects[: 1 + paired] if objects[0].appearance == asked else [] for objects in scenes]
    # In reading order, so that a thought does not list the asked object first.
    ordered = tuple(sort_in_reading_order(objects) for objects in scenes)
    seen = "; then ".join(list_objects(objects, rules.cells) for objects in ordered)
    places = " then ".join(list_cells(objects, rules.cells) for objects in meant)
    spans = [(image, span_of_objects(objects)) for image, objects in enumerate(meant) if objects]
    zooms = tuple(spans) if kind in _ZOOM else ()
    return SceneQuestion(
        "two_images",
        kind,
        _QUESTIONS[kind].format(name),
        yes_no(truth),
        "yes_no",
        ordered,
        f"see {seen}; so {name} {places}",
        zooms=zooms,
        inquiry=name if zooms else "",
        zoom_thought=",".join(str(objects[0].digit) for objects in meant if objects) if zooms else "",
        shows_several=paired,
    )


def _overview_scenes(
    rng: np.random.Generator, rules: SceneRules, kind: TwoImageKind, truth: bool, asked: Appearance
) -> list[list[SceneObject]]:
    """Draw scenes that answer `both` or `same_place`: with the asked object or without, in one place or two."""
    lacking = int(rng.integers(2)) if kind == "both" and not truth else None
    first = int(rng.integers(rules.cells**2))
    # An offset from 1 on, so that the other place is never the first.
    other = (first + int(rng.integers(1, rules.cells**2))) % rules.cells**2
    second: Cell | None = None
    if kind == "same_place":
        second = cells_from_numbers([first if truth else other], rules.cells)[0]
    places: list[Cell | None] = [cells_from_numbers([first], rules.cells)[0], second]
    return [
        _place_objects(rng, rules, scatter_cells(rng, rules.cells, rules.objects, place), asked, image != lacking)
        for image, place in enumerate(places)
    ]


def _zoom_scenes(
    rng: np.random.Generator, rules: SceneRules, kind: TwoImageKind, truth: bool, asked: Appearance, paired: bool
) -> list[list[SceneObject]]:
    """Draw scenes whose asked objects carry the digits that make the answer; for `above` only one scene has one."""
    digits: list[int | None] = list(_choose_digits(rng, kind, truth))
    if kind == "above":
        digits[rng.integers(2)] = None
    return [_scene_with_digit(rng, rules, asked, digit, paired) for digit in digits]


def _scene_with_digit(
    rng: np.random.Generator, rules: SceneRules, asked: Appearance, digit: int | None, paired: bool
) -> list[SceneObject]:
    if digit is None:
        return _place_objects(rng, rules, scatter_cells(rng, rules.cells, rules.objects), asked, False)
    places = separate_cells(rng, rules.cells, rules.objects, paired)
    objects = _place_objects(rng, rules, places, asked, True, digit)
    if paired:
        # Two different digits in one crop, so that only the inquiry can decide.
        partner = objects[1]
        objects[1] = SceneObject(*partner.appearance, partner.cell, (digit + int(rng.integers(1, 10))) % 10)
    return objects


def _choose_digits(rng: np.random.Generator, kind: TwoImageKind, truth: bool) -> tuple[int, int]:
    if kind == "above":
        digit = int(rng.integers(5)) + 5 * truth
        return digit, digit
    one, other = (int(digit) for digit in rng.permutation(10)[:2])
    if kind == "same_digit":
        return (one, one) if truth else (one, other)
    return (min(one, other), max(one, other)) if truth else (max(one, other), min(one, other))


def _place_objects(
    rng: np.random.Generator,
    rules: SceneRules,
    places: list[Cell],
    asked: Appearance,
    has_asked: bool,
    digit: int | None = None,
) -> list[SceneObject]:
    """Draw objects for places, the asked one for the first if the scene has it."""
    # Banned from the other scene, or it could be drawn there by chance.
    if has_asked:
        appearances = choose_appearances(rng, len(places), rules.own_colours, first=[asked])
    else:
        appearances = choose_appearances(rng, len(places), rules.own_colours, banned=[asked])
    digits = rng.integers(10, size=len(places))
    if digit is not None:
        digits[0] = digit
    return place_objects(appearances, places, digits)
