"""Family `referring` of task `digit_scenes`: where an object is; the answer is its box."""

from __future__ import annotations

import numpy as np

from vilavt_components.tasks.digit_scenes.items import Item, listed, numbered, placed
from vilavt_components.tasks.digit_scenes.layout import (
    COLOURS,
    SHAPES,
    Look,
    Rules,
    in_order,
    looks_with,
    put,
    scattered,
    span_of,
)

_MOST_ALIKE = 3
"""Most objects of the asked shape; each costs a look."""


def referring(rng: np.random.Generator, rules: Rules) -> Item:
    """`named` asks for an object by colour and shape; `carries` for the one of a shape that has a digit.

    The latter looks at all objects of the shape under one inquiry.
    """
    if rng.random() < rules.no_zoom:
        return _named(rng, rules)
    return _carries(rng, rules)


def _named(rng: np.random.Generator, rules: Rules) -> Item:
    looks = looks_with(rng, rules.objects, rules.own_colours)
    things = put(looks, scattered(rng, rules.cells, rules.objects), rng.integers(10, size=rules.objects))
    asked, ordered = things[0], in_order(things)
    question = f"where is the {asked.name}?"
    thought = f"see {listed(ordered, rules.cells)}; so {asked.name} {placed([asked], rules.cells)}"
    return Item("referring", "named", question, "", "box", (ordered,), thought, target=(0, asked))


def _carries(rng: np.random.Generator, rules: Rules) -> Item:
    shape, alike = SHAPES[rng.integers(len(SHAPES))], min(rules.objects, _MOST_ALIKE)
    looks = _looks(rng, rules, shape, alike)
    digits = np.concatenate([rng.permutation(10)[:alike], rng.integers(10, size=rules.objects - alike)])
    things = put(looks, scattered(rng, rules.cells, rules.objects), digits)
    asked, ordered, candidates = things[0], in_order(things), in_order(things[:alike])
    return Item(
        "referring",
        "carries",
        f"where is the {shape} with digit {asked.digit}?",
        "",
        "box",
        (ordered,),
        f"see {listed(ordered, rules.cells)}; so {shape} {placed(candidates, rules.cells)}",
        looks=tuple((0, span_of([thing])) for thing in candidates),
        inquiry=shape,
        found=f"{','.join(str(thing.digit) for thing in candidates)}; so {numbered(asked.cell, rules.cells)}",
        target=(0, asked),
    )


def _looks(rng: np.random.Generator, rules: Rules, shape: str, alike: int) -> list[Look]:
    """Looks of which the first `alike` have the shape, in different colours, and no others."""
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
    first = [(colour, shape) for colour in colours[:alike]]
    banned = [(colour, shape) for colour in COLOURS]
    return looks_with(rng, rules.objects, rules.own_colours, first, banned)
