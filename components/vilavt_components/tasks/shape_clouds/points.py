"""Samples the clouds of task `shape_clouds`: points on primitives, in two colours that make a fine pattern."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vilavt_components.tasks.shape_clouds.layout import Thing

Points = NDArray[np.float32]
Numbers = NDArray[np.floating[Any]]

_HEIGHTS: Mapping[str, float] = {"low": 0.36, "mid": 0.56, "high": 0.76}
"""Of a cell's side. Farther apart than sizes vary."""
_RGB: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "green": (35, 150, 60),
    "blue": (45, 70, 200),
    "yellow": (225, 180, 20),
}
_MARK, _FLOOR = (250, 250, 250), (128, 128, 128)
_PERIOD = 0.3
"""From mark to mark, as a share of the square root of an object's surface: 500 points show it, 50 do not."""
_SHARE = 0.42
"""Of a surface that is marked, whatever the mark: seen too coarsely, all marks are one."""
_CLUTTER = 300


@dataclass(frozen=True)
class Style:
    """How clouds are sampled, all alike."""

    points: int
    """of every object"""
    cells: int
    difficulty: float


@dataclass(frozen=True)
class Surface:
    """Points on an object around the origin, its foot at height 0."""

    xyz: Numbers
    """[N, 3]"""
    around: Numbers
    """[N] how far around it a point lies, as marks count it; a whole turn is a whole number of marks."""
    up: Numbers
    """[N] how far up, in marks"""


def cloud(rng: np.random.Generator, things: Sequence[Thing], style: Style) -> Points:
    """Points with colours, [N, 6], on a floor from (0, 0) to (cells, cells), its corners marked by a point each."""
    parts = [_object(rng, thing, style) for thing in things]
    floor = np.array([(x, y, 0.0) for x in (0, style.cells) for y in (0, style.cells)])
    clutter = round(_CLUTTER * style.difficulty)
    if clutter:
        floor = np.concatenate([floor, rng.random((clutter, 3)) * (style.cells, style.cells, 0.02)])
    parts.append(_coloured(floor, np.tile(_FLOOR, (len(floor), 1))))
    return np.concatenate(parts)


def _object(rng: np.random.Generator, thing: Thing, style: Style) -> Points:
    draws = rng.random(8)
    hard = style.difficulty
    height = _HEIGHTS[thing.size] * (1 + 0.1 * (draws[0] - 0.5))
    surface = _SURFACES[thing.shape](rng, style.points, height)
    marked = _MARKS[thing.mark](surface.around + draws[1], surface.up + draws[2])
    # A cube that turned farther would leave its cell.
    turn = 0.12 * hard * (2 * draws[3] - 1) if thing.shape == "cube" else 2 * math.pi * draws[3]
    cos, sin = math.cos(turn), math.sin(turn)
    xyz = surface.xyz @ np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)])
    cell = np.array(thing.cell)
    xyz[:, :2] += cell + 0.5 + 0.06 * hard * (draws[4:6] - 0.5)
    if hard:
        xyz += 0.008 * hard * rng.standard_normal(xyz.shape)
        xyz = np.clip(xyz, (*cell, 0), (*(cell + 1), 1))
    bright = 1 - 0.3 * hard * draws[6]
    plain, mark = np.array(_RGB[thing.colour]) * bright, np.array(_MARK) * (1 - 0.25 * hard * draws[7])
    return _coloured(xyz, np.where(marked[:, None], mark, plain))


def _coloured(xyz: Numbers, colours: Numbers) -> Points:
    """Coordinates beside colours, which are whole 255ths; [N, 6]."""
    return np.concatenate([xyz, np.rint(colours) / 255], axis=1).astype(np.float32)


# --- Marks ------------------------------------------------------------------------------------------


def _bands(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return up % 1 < _SHARE


def _stripes(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return around % 1 < _SHARE


def _spirals(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return (around + up) % 1 < _SHARE


def _dots(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (around % 1 - 0.5) ** 2 + (up % 1 - 0.5) ** 2 < _SHARE / math.pi
    return inside


def _checks(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    # Two unlike halves, so that as much is marked as elsewhere.
    wide = math.sqrt(_SHARE / 2)
    across, along = around / 2 % 1, up / 2 % 1
    first: NDArray[np.bool_] = (across < wide) & (along < wide)
    return first | ((across >= 0.5) & (across < 0.5 + wide) & (along >= 0.5) & (along < 0.5 + wide))


_MARKS: Mapping[str, Callable[[Numbers, Numbers], NDArray[np.bool_]]] = {
    "bands": _bands,
    "stripes": _stripes,
    "spirals": _spirals,
    "dots": _dots,
    "checks": _checks,
}


# --- Shapes -----------------------------------------------------------------------------------------


def _scales(area: float, girth: float) -> tuple[float, float]:
    """Marks around an object whose girth is given, an even number, and marks per unit of length up."""
    period = _PERIOD * math.sqrt(area)
    return 2.0 * max(2, round(girth / period / 2)), 1 / period


def _cube(rng: np.random.Generator, count: int, side: float) -> Surface:
    """Four sides and a top."""
    around, up = _scales(5 * side**2, 4 * side)
    face = rng.integers(5, size=count)
    a, b = rng.random((2, count))
    half = side / 2
    # The sides one after another, as they are gone around; then the top.
    x = np.choose(face, [a - 0.5, np.full(count, 0.5), 0.5 - a, np.full(count, -0.5), a - 0.5])
    y = np.choose(face, [np.full(count, -0.5), a - 0.5, np.full(count, 0.5), 0.5 - a, b - 0.5])
    top = face == 4
    xyz = np.stack([2 * half * x, 2 * half * y, np.where(top, side, side * b)], axis=1)
    return Surface(xyz, around * np.where(top, a / 4, (face + a) / 4), up * side * b)


def _sphere(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = height / 2
    around, up = _scales(4 * math.pi * radius**2, 2 * math.pi * radius)
    turn, z = rng.random(count), 2 * rng.random(count) - 1
    flat = np.sqrt(1 - z**2)
    xyz = radius * np.stack([flat * np.cos(2 * math.pi * turn), flat * np.sin(2 * math.pi * turn), 1 + z], axis=1)
    return Surface(xyz, around * turn, up * radius * np.arcsin(z))


def _cylinder(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = 0.27
    side, top = 2 * math.pi * radius * height, math.pi * radius**2
    around, up = _scales(side + top, 2 * math.pi * radius)
    on_top = rng.random(count) < top / (side + top)
    turn, share = rng.random((2, count))
    reach = np.where(on_top, radius * np.sqrt(share), radius)
    x, y = reach * np.cos(2 * math.pi * turn), reach * np.sin(2 * math.pi * turn)
    xyz = np.stack([x, y, np.where(on_top, height, height * share)], axis=1)
    return Surface(xyz, np.where(on_top, up * x, around * turn), up * np.where(on_top, y, height * share))


def _cone(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = 0.36
    slant = math.hypot(radius, height)
    around, up = _scales(math.pi * radius * slant, math.pi * radius)
    turn, down = rng.random(count), np.sqrt(rng.random(count))
    x, y = radius * down * np.cos(2 * math.pi * turn), radius * down * np.sin(2 * math.pi * turn)
    return Surface(np.stack([x, y, height * (1 - down)], axis=1), around * turn, up * slant * (1 - down))


_TURNS = np.linspace(0, 1, 65)


def _torus(rng: np.random.Generator, count: int, height: float) -> Surface:
    """A ring that lies flat, of one size whatever the height."""
    ring, tube = 0.26, 0.13
    around, _ = _scales(4 * math.pi**2 * ring * tube, 2 * math.pi * ring)
    up, _ = _scales(4 * math.pi**2 * ring * tube, 2 * math.pi * tube)
    # There is more of the surface outside than inside.
    covered = _TURNS + tube / ring * np.sin(2 * math.pi * _TURNS) / (2 * math.pi)
    turn, through = rng.random(count), np.interp(rng.random(count), covered, _TURNS)
    reach = ring + tube * np.cos(2 * math.pi * through)
    x, y = reach * np.cos(2 * math.pi * turn), reach * np.sin(2 * math.pi * turn)
    xyz = np.stack([x, y, tube * (1 + np.sin(2 * math.pi * through))], axis=1)
    return Surface(xyz, around * turn, up * through)


_SURFACES: Mapping[str, Callable[[np.random.Generator, int, float], Surface]] = {
    "cube": _cube,
    "sphere": _sphere,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
}
