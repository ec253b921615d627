"""Family `video` of task `digit_scenes`: questions about what changes from frame to frame, where and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.layout import (
    SceneObject,
    SceneRules,
    choose_appearances,
    place_objects,
    sort_in_reading_order,
)
from vilavt_components.tasks.digit_scenes.question import SceneQuestion, list_cells, list_objects, span_of_objects
from vilavt_components.tasks.generated.grid import Cell, scatter_cells, separate_cells

VideoKind = Literal["moves", "where", "appears", "first", "becomes", "changes"]
_NO_ZOOM: tuple[VideoKind, ...] = ("moves", "where", "appears", "first")
_ZOOM: tuple[VideoKind, ...] = ("becomes", "changes")

Film = list[list[SceneObject]]
"""The objects of every frame, in one order for all frames."""


def make_video(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Make a question about a video of a few frames.

    Four kinds need no zoom: which object moves, where to, in which frame one appears, which of two moves first.
    `becomes` zooms into one frame, `changes` into all frames under one inquiry.
    """
    # Both numbers are drawn for every kind, so that all kinds go on from the same state of the generator.
    draws = rng.random(2)
    if draws[0] >= rules.no_zoom:
        if _ZOOM[rng.integers(len(_ZOOM))] == "changes":
            return _ask_digit_change(rng, rules)
        return _ask_digit_in_frame(rng, rules, bool(draws[1] < rules.several))
    kind = _NO_ZOOM[rng.integers(len(_NO_ZOOM))]
    if kind == "appears":
        return _ask_when_appears(rng, rules)
    return _ask_which_first(rng, rules) if kind == "first" else _ask_what_moves(rng, rules, kind)


def _ask_what_moves(rng: np.random.Generator, rules: SceneRules, kind: VideoKind) -> SceneQuestion:
    """Ask which object moves, or where it moves to."""
    objects, (free, *_) = _still_scene(rng, rules)
    when = int(rng.integers(1, rules.frames))
    moved = _move_object(objects[0], free)
    film = [[moved if frame >= when else objects[0], *objects[1:]] for frame in range(rules.frames)]
    seen, place = _describe_film(film, rules), list_cells([moved], rules.cells)
    if kind == "moves":
        thought = f"{seen}; so {place} {moved.name}"
        return SceneQuestion(
            "video", kind, "which object moves?", moved.name, "text", _sort_frames(film), thought, is_film=True
        )
    question = f"where does the {moved.name} move to?"
    # The box in the last frame: before it the object may stand elsewhere.
    thought = f"{seen}; so {moved.name} {place}"
    target = (rules.frames - 1, moved)
    return SceneQuestion(
        "video", kind, question, "", "box", _sort_frames(film), thought, answer_object=target, is_film=True
    )


def _ask_when_appears(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Ask in which frame an object appears."""
    objects, _ = _still_scene(rng, rules)
    when = int(rng.integers(1, rules.frames))
    # From the second frame on, since an object of the first one does not appear.
    film = [objects if frame >= when else objects[1:] for frame in range(rules.frames)]
    question = f"in which frame does the {objects[0].name} appear?"
    thought = f"{_describe_film(film, rules)}; so {objects[0].name} frame {when}"
    return SceneQuestion("video", "appears", question, str(when), "number", _sort_frames(film), thought, is_film=True)


def _ask_which_first(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Ask which of two moving objects moves first."""
    objects, free = _still_scene(rng, rules)
    # From a permutation, so that the two move in different frames.
    early, late = sorted((1 + rng.permutation(rules.frames - 1)[:2]).tolist())
    film = []
    for frame in range(rules.frames):
        first = _move_object(objects[0], free[0]) if frame >= early else objects[0]
        second = _move_object(objects[1], free[1]) if frame >= late else objects[1]
        film.append([first, second, *objects[2:]])
    one, other = (objects[i].name for i in rng.permutation(2))
    question = f"which moves first, the {one} or the {other}?"
    thought = f"{_describe_film(film, rules)}; so {list_cells([film[-1][0]], rules.cells)} {objects[0].name}"
    return SceneQuestion("video", "first", question, objects[0].name, "text", _sort_frames(film), thought, is_film=True)


def _ask_digit_in_frame(rng: np.random.Generator, rules: SceneRules, paired: bool) -> SceneQuestion:
    """Ask for the digit of an object in one frame, where it is another one in every frame."""
    digits = rng.permutation(10).tolist()
    objects = _place_objects(rng, rules, separate_cells(rng, rules.cells, rules.objects, paired))
    if paired:
        # The asked object's digits leave one out at least, since there are at most 8 frames.
        objects[1] = replace(objects[1], digit=digits[-1])
    film = [[replace(objects[0], digit=digits[frame]), *objects[1:]] for frame in range(rules.frames)]
    when, meant = int(rng.integers(rules.frames)), objects[: 1 + paired]
    return SceneQuestion(
        "video",
        "becomes",
        f"what digit is on the {objects[0].name} in frame {when}?",
        str(digits[when]),
        "number",
        _sort_frames(film),
        f"{_describe_film(film, rules)}; so {objects[0].name} {list_cells(meant, rules.cells)} frame {when}",
        zooms=((when, span_of_objects(meant)),),
        inquiry=objects[0].name,
        zoom_thought=str(digits[when]),
        shows_several=paired,
        is_film=True,
    )


def _ask_digit_change(rng: np.random.Generator, rules: SceneRules) -> SceneQuestion:
    """Ask in which frame the digit of an object changes."""
    # From a permutation, so that the two digits differ.
    before, after = rng.permutation(10)[:2].tolist()
    objects = _place_objects(rng, rules, scatter_cells(rng, rules.cells, rules.objects))
    when = int(rng.integers(1, rules.frames))
    digits = [after if frame >= when else before for frame in range(rules.frames)]
    film = [[replace(objects[0], digit=digit), *objects[1:]] for digit in digits]
    # All frames are zoomed into: no overview shows in which one the digit changes.
    span = span_of_objects(objects[:1])
    return SceneQuestion(
        "video",
        "changes",
        f"in which frame does the digit on the {objects[0].name} change?",
        str(when),
        "number",
        _sort_frames(film),
        f"{_describe_film(film, rules)}; so {objects[0].name} {list_cells(objects[:1], rules.cells)}",
        zooms=tuple((frame, span) for frame in range(rules.frames)),
        inquiry=objects[0].name,
        zoom_thought=",".join(map(str, digits)),
        is_film=True,
    )


def _describe_film(film: Film, rules: SceneRules) -> str:
    """Write the objects of the first frame, then for every further frame those that are new in their cell."""
    parts = [f"see {list_objects(sort_in_reading_order(film[0]), rules.cells)}"]
    # Later frames list only what is new in them, which keeps thoughts short.
    for frame in range(1, len(film)):
        before = {(item.name, item.cell) for item in film[frame - 1]}
        new = [item for item in sort_in_reading_order(film[frame]) if (item.name, item.cell) not in before]
        parts.append(f"frame {frame} {list_objects(new, rules.cells) or 'same'}")
    return "; ".join(parts)


def _still_scene(rng: np.random.Generator, rules: SceneRules) -> tuple[list[SceneObject], list[Cell]]:
    """Draw objects in any cells; returns them and the cells that stay free."""
    places = scatter_cells(rng, rules.cells, rules.cells**2)
    return _place_objects(rng, rules, places[: rules.objects]), places[rules.objects :]


def _place_objects(rng: np.random.Generator, rules: SceneRules, places: Sequence[Cell]) -> list[SceneObject]:
    appearances = choose_appearances(rng, len(places), rules.own_colours)
    return place_objects(appearances, places, rng.integers(10, size=len(places)))


def _move_object(item: SceneObject, cell: Cell) -> SceneObject:
    return replace(item, cell=cell)


def _sort_frames(film: Film) -> tuple[tuple[SceneObject, ...], ...]:
    return tuple(sort_in_reading_order(objects) for objects in film)
