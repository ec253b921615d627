"""Family `one_image` of task `digit_scenes`: what is on an object, what shape or colour it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.items import AnswerKind, Item, listed, placed
from vilavt_components.tasks.digit_scenes.layout import (
    COLOURS,
    LOOKS,
    SHAPES,
    Look,
    Rules,
    Thing,
    apart,
    in_order,
    put,
    span_of,
    to_cells,
)

Kind = Literal["digit", "shape", "colour", "close"]
"""What is asked for: a digit, a shape, a colour, or the digit of an object that fills the picture."""
_NO_ZOOM: tuple[Kind, ...] = ("shape", "colour", "colour", "close")
"""Colours twice: what stands before a shape is harder to look up than what stands after a colour."""


def one_image(rng: np.random.Generator, rules: Rules) -> Item:
    """A question about one object of a scene, or about the only one, seen from close by."""
    draws = rng.random(2)
    if draws[0] >= rules.no_zoom:
        paired = bool(draws[1] < rules.several)
        places = apart(rng, rules.cells, rules.objects, paired)
        return _item(rules, "digit", _things(rng, rules, places, "digit", paired), paired)
    kind = _NO_ZOOM[int(rng.integers(len(_NO_ZOOM)))]
    if kind == "close":
        return _close(_things(rng, rules, [(0, 0)], kind, False)[0])
    places = to_cells(rng.permutation(rules.cells**2)[: rules.objects], rules.cells)
    return _item(rules, kind, _things(rng, rules, places, kind, False), False)


def _close(asked: Thing) -> Item:
    question, answer, answer_kind = _question(asked, "close")
    return Item("one_image", "close", question, answer, answer_kind, ((asked,),), answer, close=True)


def _item(rules: Rules, kind: Kind, things: Sequence[Thing], paired: bool) -> Item:
    asked, meant, ordered = things[0], things[: 1 + paired], in_order(things)
    question, answer, answer_kind = _question(asked, kind)
    restated = f"{asked.shape} {asked.colour}" if kind == "colour" else asked.name
    thought = f"see {listed(ordered, rules.cells)}; so {restated} {placed(meant, rules.cells)}"
    look = (0, span_of(meant))
    return Item(
        "one_image",
        kind,
        question,
        answer,
        answer_kind,
        (ordered,),
        thought,
        looks=(look,) if kind == "digit" else (),
        inquiry=asked.name,
        found=answer,
        spare=None if kind == "digit" else look,
        several=paired,
    )


def _question(asked: Thing, kind: Kind) -> tuple[str, str, AnswerKind]:
    """The question about an object, its answer, and of what kind that is."""
    if kind == "shape":
        return f"what shape is the {asked.colour} object?", asked.shape, "text"
    if kind == "colour":
        return f"what colour is the {asked.shape}?", asked.colour, "text"
    return f"what digit is on the {asked.name}?", str(asked.digit), "number"


def _things(
    rng: np.random.Generator, rules: Rules, places: Sequence[tuple[int, int]], kind: Kind, paired: bool
) -> list[Thing]:
    """Put looks and digits on places; the first place is the asked object's, the second its partner's."""
    looks = _looks(rng, len(places), kind, rules.own_colours)
    digits = rng.integers(10, size=len(places))
    if paired:  # two different digits in one crop: the inquiry decides
        digits[1] = (digits[0] + rng.integers(1, 10)) % 10
    return put(looks, places, digits)


def _looks(rng: np.random.Generator, count: int, kind: Kind, own_colours: bool) -> list[Look]:
    """`count` different looks; what the question names of the first one, no other has."""
    if own_colours:
        return _own_colours(rng, count, kind)
    first = LOOKS[rng.integers(len(LOOKS))]
    others = [
        look
        for look in LOOKS
        if look != first
        and not (kind == "shape" and look[0] == first[0])
        and not (kind == "colour" and look[1] == first[1])
    ]
    return [first, *(others[i] for i in rng.permutation(len(others))[: count - 1])]


def _own_colours(rng: np.random.Generator, count: int, kind: Kind) -> list[Look]:
    """`count` looks, no two of one colour; the first one's shape is its own where the question names it."""
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:count]]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    if kind == "colour":
        others = [shape for shape in SHAPES if shape != shapes[0]]
        shapes[1:] = [others[i] for i in rng.integers(len(others), size=count - 1)]
    return list(zip(colours, shapes, strict=True))
