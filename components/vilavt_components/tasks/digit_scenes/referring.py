"""Family `referring` of task `digit_scenes`: questions whose answer is the box of an object."""

from __future__ import annotations

import numpy as np

from vilavt_components.tasks.digit_scenes.layout import (
    COLOURS,
    SHAPES,
    Appearance,
    SceneRules,
    choose_appearances,
    place_objects,
    sort_in_reading_order,
)
from vilavt_components.tasks.digit_scenes.question import SceneQuestion, list_cells, list_objects, span_of_objects
from vilavt_components.tasks.generated.grid import cell_number, scatter_cells

_MOST_ALIKE = 3
"""Most objects of the asked shape; each costs a region of the zoom."""


def make_referring(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Ask for an object by colour and shape (`named`), or for the one of a shape that carries a digit (`carries`).

    Kind `carries` zooms into all objects of the shape under one inquiry.
    """
    if rng.random() < rules.no_zoom:
        return _ask_by_name(rng, rules)
    return _ask_by_digit(rng, rules)


def _ask_by_name(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    appearances = choose_appearances(rng, rules.objects, rules.own_colours)
    objects = place_objects(
        appearances, scatter_cells(rng, rules.cells, rules.objects), rng.integers(10, size=rules.objects)
    )
    asked, ordered = objects[0], sort_in_reading_order(objects)
    question = f"where is the {asked.name}?"
    thought = f"see {list_objects(ordered, rules.cells)}; so {asked.name} {list_cells([asked], rules.cells)}"
    return SceneQuestion("referring", "named", question, "", "box", (ordered,), thought, answer_object=(0, asked))


def _ask_by_digit(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    shape, alike = SHAPES[rng.integers(len(SHAPES))], min(rules.objects, _MOST_ALIKE)
    appearances = _choose_alike(rng, rules, shape, alike)
    # The candidates carry different digits, so that the question means one of them.
    digits = np.concatenate([rng.permutation(10)[:alike], rng.integers(10, size=rules.objects - alike)])
    objects = place_objects(appearances, scatter_cells(rng, rules.cells, rules.objects), digits)
    # Which candidate carries the digit is not known before the zoom, so it shows all of them.
    asked, ordered, candidates = objects[0], sort_in_reading_order(objects), sort_in_reading_order(objects[:alike])
    return SceneQuestion(
        "referring",
        "carries",
        f"where is the {shape} with digit {asked.digit}?",
        "",
        "box",
        (ordered,),
        f"see {list_objects(ordered, rules.cells)}; so {shape} {list_cells(candidates, rules.cells)}",
        zooms=tuple((0, span_of_objects([item])) for item in candidates),
        inquiry=shape,
        zoom_thought=f"{','.join(str(item.digit) for item in candidates)}; so {cell_number(asked.cell, rules.cells)}",
        answer_object=(0, asked),
    )


def _choose_alike(rng: np.random.Generator, rules: SceneRules, shape: str, alike: int) -> list[Appearance]:
    """Draw appearances of which exactly the first `alike` have the shape, each in another colour."""
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
    first = [(colour, shape) for colour in colours[:alike]]
    # All other objects of the shape are banned, so that no more than `alike` have it.
    banned = [(colour, shape) for colour in COLOURS]
    return choose_appearances(rng, rules.objects, rules.own_colours, first, banned)
