"""Family `video` of task `digit_scenes`: what changed from frame to frame, where, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from vilavt_components.tasks.digit_scenes.items import Item, listed, placed
from vilavt_components.tasks.digit_scenes.layout import (
    Cell,
    Rules,
    Thing,
    apart,
    in_order,
    looks_with,
    put,
    scattered,
    span_of,
)

Kind = Literal["moves", "where", "appears", "first", "becomes", "changes"]
_NO_ZOOM: tuple[Kind, ...] = ("moves", "where", "appears", "first")
_ZOOM: tuple[Kind, ...] = ("becomes", "changes")

Film = list[list[Thing]]
"""The objects of every frame, always in one order."""


def video(rng: np.random.Generator, rules: Rules) -> Item:
    """A question about a film.

    Which object moves, where to, in which frame one appears, which of two moves first: these need no zoom. `becomes`
    looks into one frame, `changes` into all frames under one inquiry.
    """
    draws = rng.random(2)
    if draws[0] >= rules.no_zoom:
        if _ZOOM[rng.integers(len(_ZOOM))] == "changes":
            return _changes(rng, rules)
        return _becomes(rng, rules, bool(draws[1] < rules.several))
    kind = _NO_ZOOM[rng.integers(len(_NO_ZOOM))]
    if kind == "appears":
        return _appears(rng, rules)
    return _first(rng, rules) if kind == "first" else _moves(rng, rules, kind)


def _moves(rng: np.random.Generator, rules: Rules, kind: Kind) -> Item:
    """One object moves: which, or where to."""
    things, (free, *_) = _still(rng, rules)
    when = int(rng.integers(1, rules.frames))
    film = [[_at(things[0], free) if frame >= when else things[0], *things[1:]] for frame in range(rules.frames)]
    moved = film[-1][0]
    seen, place = _seen(film, rules), placed([moved], rules.cells)
    if kind == "moves":
        thought = f"{seen}; so {place} {moved.name}"
        return Item("video", kind, "which object moves?", moved.name, "text", _frames(film), thought, film=True)
    question = f"where does the {moved.name} move to?"
    thought = f"{seen}; so {moved.name} {place}"
    target = (rules.frames - 1, moved)
    return Item("video", kind, question, "", "box", _frames(film), thought, target=target, film=True)


def _appears(rng: np.random.Generator, rules: Rules) -> Item:
    """One object is not there at first: when does it come."""
    things, _ = _still(rng, rules)
    when = int(rng.integers(1, rules.frames))
    film = [things if frame >= when else things[1:] for frame in range(rules.frames)]
    question = f"in which frame does the {things[0].name} appear?"
    thought = f"{_seen(film, rules)}; so {things[0].name} frame {when}"
    return Item("video", "appears", question, str(when), "number", _frames(film), thought, film=True)


def _first(rng: np.random.Generator, rules: Rules) -> Item:
    """Two objects move, one after the other: which is first."""
    things, free = _still(rng, rules)
    early, late = sorted((1 + rng.permutation(rules.frames - 1)[:2]).tolist())
    film = [
        [
            _at(things[0], free[0]) if frame >= early else things[0],
            _at(things[1], free[1]) if frame >= late else things[1],
            *things[2:],
        ]
        for frame in range(rules.frames)
    ]
    one, other = (things[i].name for i in rng.permutation(2))
    question = f"which moves first, the {one} or the {other}?"
    thought = f"{_seen(film, rules)}; so {placed([film[-1][0]], rules.cells)} {things[0].name}"
    return Item("video", "first", question, things[0].name, "text", _frames(film), thought, film=True)


def _becomes(rng: np.random.Generator, rules: Rules, paired: bool) -> Item:
    """An object's digit is another one in every frame: what is it in one of them."""
    digits = rng.permutation(10).tolist()
    things = _things(rng, rules, apart(rng, rules.cells, rules.objects, paired))
    if paired:  # two different digits in one crop, in every frame: the inquiry decides
        things[1] = replace(things[1], digit=digits[-1])
    film = [[replace(things[0], digit=digits[frame]), *things[1:]] for frame in range(rules.frames)]
    when, meant = int(rng.integers(rules.frames)), things[: 1 + paired]
    return Item(
        "video",
        "becomes",
        f"what digit is on the {things[0].name} in frame {when}?",
        str(digits[when]),
        "number",
        _frames(film),
        f"{_seen(film, rules)}; so {things[0].name} {placed(meant, rules.cells)} frame {when}",
        looks=((when, span_of(meant)),),
        inquiry=things[0].name,
        found=str(digits[when]),
        several=paired,
        film=True,
    )


def _changes(rng: np.random.Generator, rules: Rules) -> Item:
    """An object's digit changes once: when."""
    before, after = rng.permutation(10)[:2].tolist()
    things = _things(rng, rules, scattered(rng, rules.cells, rules.objects))
    when = int(rng.integers(1, rules.frames))
    digits = [after if frame >= when else before for frame in range(rules.frames)]
    film = [[replace(things[0], digit=digit), *things[1:]] for digit in digits]
    span = span_of(things[:1])
    return Item(
        "video",
        "changes",
        f"in which frame does the digit on the {things[0].name} change?",
        str(when),
        "number",
        _frames(film),
        f"{_seen(film, rules)}; so {things[0].name} {placed(things[:1], rules.cells)}",
        looks=tuple((frame, span) for frame in range(rules.frames)),
        inquiry=things[0].name,
        found=",".join(map(str, digits)),
        film=True,
    )


def _seen(film: Film, rules: Rules) -> str:
    """The first frame's objects, and of every further frame those that are new where they stand."""
    said = [f"see {listed(in_order(film[0]), rules.cells)}"]
    for frame in range(1, len(film)):
        before = {(thing.name, thing.cell) for thing in film[frame - 1]}
        new = [thing for thing in in_order(film[frame]) if (thing.name, thing.cell) not in before]
        said.append(f"frame {frame} {listed(new, rules.cells) or 'same'}")
    return "; ".join(said)


def _still(rng: np.random.Generator, rules: Rules) -> tuple[list[Thing], list[Cell]]:
    """Objects anywhere, and the cells that stay free."""
    places = scattered(rng, rules.cells, rules.cells**2)
    return _things(rng, rules, places[: rules.objects]), places[rules.objects :]


def _things(rng: np.random.Generator, rules: Rules, places: Sequence[Cell]) -> list[Thing]:
    looks = looks_with(rng, len(places), rules.own_colours)
    return put(looks, places, rng.integers(10, size=len(places)))


def _at(thing: Thing, cell: Cell) -> Thing:
    return replace(thing, cell=cell)


def _frames(film: Film) -> tuple[tuple[Thing, ...], ...]:
    return tuple(in_order(things) for things in film)
