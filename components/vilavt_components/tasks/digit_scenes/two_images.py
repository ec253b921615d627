"""Family `two_images` of task `digit_scenes`: yes or no, comparing an object of two scenes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.items import Item, listed, placed, yes_no
from vilavt_components.tasks.digit_scenes.layout import (
    Cell,
    Look,
    Rules,
    Thing,
    apart,
    in_order,
    looks_with,
    put,
    scattered,
    some_look,
    span_of,
    to_cells,
)

Kind = Literal["both", "same_place", "same_digit", "larger", "above"]
_NO_ZOOM: tuple[Kind, ...] = ("both", "same_place")
_ZOOM: tuple[Kind, ...] = ("same_digit", "larger", "above")
_QUESTIONS: dict[Kind, str] = {
    "both": "do both images have a {}?",
    "same_place": "is the {} in the same place in both images?",
    "same_digit": "is the digit on the {} the same in both images?",
    "larger": "is the digit on the {} larger in the second image?",
    "above": "is the digit on the {} larger than 4?",
}


def two_images(rng: np.random.Generator, rules: Rules) -> Item:
    """A question about an object of two scenes, the one answer as likely as the other.

    `both` and `same_place` need no zoom; `same_digit` and `larger` look into both images under one inquiry; `above`
    looks into the one that has the object.
    """
    draws = rng.random(3)
    truth, asked = bool(draws[2] < 0.5), some_look(rng)
    if draws[0] < rules.no_zoom:
        kind = _NO_ZOOM[rng.integers(len(_NO_ZOOM))]
        return _item(rules, kind, truth, asked, _seen_at_once(rng, rules, kind, truth, asked), False)
    kind, paired = _ZOOM[rng.integers(len(_ZOOM))], bool(draws[1] < rules.several)
    return _item(rules, kind, truth, asked, _seen_from_close_by(rng, rules, kind, truth, asked, paired), paired)


def _item(rules: Rules, kind: Kind, truth: bool, asked: Look, scenes: list[list[Thing]], paired: bool) -> Item:
    """The item of two scenes, the asked object first in those that have it, its partner behind it."""
    name = " ".join(asked)
    meant = [things[: 1 + paired] if things[0].look == asked else [] for things in scenes]
    ordered = tuple(in_order(things) for things in scenes)
    seen = "; then ".join(listed(things, rules.cells) for things in ordered)
    places = " then ".join(placed(things, rules.cells) for things in meant)
    zoomed = [(image, span_of(things)) for image, things in enumerate(meant) if things]
    looks = tuple(zoomed) if kind in _ZOOM else ()
    return Item(
        "two_images",
        kind,
        _QUESTIONS[kind].format(name),
        yes_no(truth),
        "yes_no",
        ordered,
        f"see {seen}; so {name} {places}",
        looks=looks,
        inquiry=name if looks else "",
        found=",".join(str(things[0].digit) for things in meant if things) if looks else "",
        several=paired,
    )


def _seen_at_once(rng: np.random.Generator, rules: Rules, kind: Kind, truth: bool, asked: Look) -> list[list[Thing]]:
    """Scenes that have the asked object or not, in the same place or not."""
    lacking = int(rng.integers(2)) if kind == "both" and not truth else None
    first = int(rng.integers(rules.cells**2))
    other = (first + int(rng.integers(1, rules.cells**2))) % rules.cells**2
    second: Cell | None = None
    if kind == "same_place":
        second = to_cells([first if truth else other], rules.cells)[0]
    places: list[Cell | None] = [to_cells([first], rules.cells)[0], second]
    return [
        _things(rng, rules, scattered(rng, rules.cells, rules.objects, place), asked, image != lacking)
        for image, place in enumerate(places)
    ]


def _seen_from_close_by(
    rng: np.random.Generator, rules: Rules, kind: Kind, truth: bool, asked: Look, paired: bool
) -> list[list[Thing]]:
    """Scenes whose asked objects carry digits that make the answer; only one of them has one where kind is `above`."""
    digits: list[int | None] = list(_digits(rng, kind, truth))
    if kind == "above":
        digits[rng.integers(2)] = None
    return [_with_digit(rng, rules, asked, digit, paired) for digit in digits]


def _with_digit(rng: np.random.Generator, rules: Rules, asked: Look, digit: int | None, paired: bool) -> list[Thing]:
    if digit is None:
        return _things(rng, rules, scattered(rng, rules.cells, rules.objects), asked, False)
    places = apart(rng, rules.cells, rules.objects, paired)
    things = _things(rng, rules, places, asked, True, digit)
    if paired:  # two different digits in one crop: the inquiry decides
        partner = things[1]
        things[1] = Thing(*partner.look, partner.cell, (digit + int(rng.integers(1, 10))) % 10)
    return things


def _digits(rng: np.random.Generator, kind: Kind, truth: bool) -> tuple[int, int]:
    if kind == "above":
        digit = int(rng.integers(5)) + 5 * truth
        return digit, digit
    one, other = (int(digit) for digit in rng.permutation(10)[:2])
    if kind == "same_digit":
        return (one, one) if truth else (one, other)
    return (min(one, other), max(one, other)) if truth else (max(one, other), min(one, other))


def _things(
    rng: np.random.Generator, rules: Rules, places: list[Cell], asked: Look, has: bool, digit: int | None = None
) -> list[Thing]:
    """Objects on places, the asked one on the first if the scene has it."""
    if has:
        looks = looks_with(rng, len(places), rules.own_colours, first=[asked])
    else:
        looks = looks_with(rng, len(places), rules.own_colours, banned=[asked])
    digits = rng.integers(10, size=len(places))
    if digit is not None:
        digits[0] = digit
    return put(looks, places, digits)
