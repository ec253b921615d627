"""Sampling of the clouds of task `shape_clouds`: points on primitives, in two colours that make a fine pattern."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vilavt_components.tasks.shape_clouds.layout import CloudObject

Points = NDArray[np.float32]
Numbers = NDArray[np.floating[Any]]

_HEIGHTS: Mapping[str, float] = {"low": 0.36, "mid": 0.56, "high": 0.76}
"""Heights as shares of a cell's side; they differ by more than the sizes of one height vary."""
_RGB: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "green": (35, 150, 60),
    "blue": (45, 70, 200),
    "yellow": (225, 180, 20),
}
_MARK, _FLOOR = (250, 250, 250), (128, 128, 128)
_PERIOD = 0.3
"""Distance from mark to mark, as a share of the square root of an object's surface: 500 points show it, 50 do not."""
_SHARE = 0.42
"""Share of a surface that is marked, the same for all marks: seen too coarsely, they cannot be told apart."""
_CLUTTER = 300


@dataclass(frozen=True)
class CloudStyle:
    """The settings that clouds are sampled by."""

    points: int
    """Points of every object."""
    cells: int
    difficulty: float


@dataclass(frozen=True)
class Surface:
    """Points on an object that stands on the origin."""

    xyz: Numbers
    """[N, 3]"""
    around: Numbers
    """[N] how far around the object a point lies, in marks; a whole turn is a whole number of marks."""
    up: Numbers
    """[N] how far up the object a point lies, in marks"""


def sample_cloud(rng: np.random.Generator, objects: Sequence[CloudObject], style: CloudStyle) -> Points:
    """Sample points with colours, [N, 6], on a floor from (0, 0) to (cells, cells).

    A point on each corner of the floor makes its extent the same in all clouds.
    """
    parts = [_sample_object(rng, item, style) for item in objects]
    floor = np.array([(x, y, 0.0) for x in (0, style.cells) for y in (0, style.cells)])
    clutter = round(_CLUTTER * style.difficulty)
    if clutter:
        floor = np.concatenate([floor, rng.random((clutter, 3)) * (style.cells, style.cells, 0.02)])
    parts.append(_join_colours(floor, np.tile(_FLOOR, (len(floor), 1))))
    return np.concatenate(parts)


def _sample_object(rng: np.random.Generator, item: CloudObject, style: CloudStyle) -> Points:
    draws = rng.random(8)
    hard = style.difficulty
    height = _HEIGHTS[item.size] * (1 + 0.1 * (draws[0] - 0.5))
    surface = _SURFACES[item.shape](rng, style.points, height)
    marked = _MARKS[item.mark](surface.around + draws[1], surface.up + draws[2])
    # A cube that is turned farther would leave its cell.
    turn = 0.12 * hard * (2 * draws[3] - 1) if item.shape == "cube" else 2 * math.pi * draws[3]
    cos, sin = math.cos(turn), math.sin(turn)
    xyz = surface.xyz @ np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)])
    cell = np.array(item.cell)
    xyz[:, :2] += cell + 0.5 + 0.06 * hard * (draws[4:6] - 0.5)
    if hard:
        # Clipped, so that noise moves no point into another cell, where a zoom would show it.
        xyz += 0.008 * hard * rng.standard_normal(xyz.shape)
        xyz = np.clip(xyz, (*cell, 0), (*(cell + 1), 1))
    bright = 1 - 0.3 * hard * draws[6]
    plain, mark = np.array(_RGB[item.colour]) * bright, np.array(_MARK) * (1 - 0.25 * hard * draws[7])
    return _join_colours(xyz, np.where(marked[:, None], mark, plain))


def _join_colours(xyz: Numbers, colours: Numbers) -> Points:
    """Join coordinates and colours, [N, 6]; colours are rounded to multiples of 1/255, which a PLY can hold."""
    return np.concatenate([xyz, np.rint(colours) / 255], axis=1).astype(np.float32)


# --- Marks ------------------------------------------------------------------------------------------


def _is_in_band(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return up % 1 < _SHARE


def _is_in_stripe(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return around % 1 < _SHARE


def _is_in_spiral(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    return (around + up) % 1 < _SHARE


def _is_in_dot(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    # A circle whose area is the marked share.
    inside: NDArray[np.bool_] = (around % 1 - 0.5) ** 2 + (up % 1 - 0.5) ** 2 < _SHARE / math.pi
    return inside


def _is_in_check(around: Numbers, up: Numbers) -> NDArray[np.bool_]:
    # Two squares in each period of two marks, so wide that the marked share is that of the other marks.
    wide = math.sqrt(_SHARE / 2)
    across, along = around / 2 % 1, up / 2 % 1
    first: NDArray[np.bool_] = (across < wide) & (along < wide)
    return first | ((across >= 0.5) & (across < 0.5 + wide) & (along >= 0.5) & (along < 0.5 + wide))


_MARKS: Mapping[str, Callable[[Numbers, Numbers], NDArray[np.bool_]]] = {
    "bands": _is_in_band,
    "stripes": _is_in_stripe,
    "spirals": _is_in_spiral,
    "dots": _is_in_dot,
    "checks": _is_in_check,
}


# --- Shapes -----------------------------------------------------------------------------------------


def _mark_scales(area: float, girth: float) -> tuple[float, float]:
    """Return the number of marks around an object of a given girth, and of marks per unit of length up."""
    # An even number, so that checks, which alternate, meet around the object.
    period = _PERIOD * math.sqrt(area)
    return 2.0 * max(2, round(girth / period / 2)), 1 / period


def _sample_cube(rng: np.random.Generator, count: int, side: float) -> Surface:
    """Sample points on the four sides and the top of a cube."""
    around, up = _mark_scales(5 * side**2, 4 * side)
    face = rng.integers(5, size=count)
    a, b = rng.random((2, count))
    half = side / 2
    # The sides in the order of a walk around the cube, then the top.
    x = np.choose(face, [a - 0.5, np.full(count, 0.5), 0.5 - a, np.full(count, -0.5), a - 0.5])
    y = np.choose(face, [np.full(count, -0.5), a - 0.5, np.full(count, 0.5), 0.5 - a, b - 0.5])
    top = face == 4
    xyz = np.stack([2 * half * x, 2 * half * y, np.where(top, side, side * b)], axis=1)
    return Surface(xyz, around * np.where(top, a / 4, (face + a) / 4), up * side * b)


def _sample_sphere(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = height / 2
    around, up = _mark_scales(4 * math.pi * radius**2, 2 * math.pi * radius)
    # A uniform height spreads points evenly over a sphere (Archimedes).
    turn, z = rng.random(count), 2 * rng.random(count) - 1
    flat = np.sqrt(1 - z**2)
    xyz = radius * np.stack([flat * np.cos(2 * math.pi * turn), flat * np.sin(2 * math.pi * turn), 1 + z], axis=1)
    return Surface(xyz, around * turn, up * radius * np.arcsin(z))


def _sample_cylinder(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = 0.27
    side, top = 2 * math.pi * radius * height, math.pi * radius**2
    around, up = _mark_scales(side + top, 2 * math.pi * radius)
    # Side and top get points by their areas.
    on_top = rng.random(count) < top / (side + top)
    turn, share = rng.random((2, count))
    reach = np.where(on_top, radius * np.sqrt(share), radius)
    x, y = reach * np.cos(2 * math.pi * turn), reach * np.sin(2 * math.pi * turn)
    xyz = np.stack([x, y, np.where(on_top, height, height * share)], axis=1)
    return Surface(xyz, np.where(on_top, up * x, around * turn), up * np.where(on_top, y, height * share))


def _sample_cone(rng: np.random.Generator, count: int, height: float) -> Surface:
    radius = 0.36
    slant = math.hypot(radius, height)
    around, up = _mark_scales(math.pi * radius * slant, math.pi * radius)
    # Square root, since the surface above a point grows with the square of its distance from the tip.
    turn, down = rng.random(count), np.sqrt(rng.random(count))
    x, y = radius * down * np.cos(2 * math.pi * turn), radius * down * np.sin(2 * math.pi * turn)
    return Surface(np.stack([x, y, height * (1 - down)], axis=1), around * turn, up * slant * (1 - down))


_TURNS = np.linspace(0, 1, 65)


def _sample_torus(rng: np.random.Generator, count: int, height: float) -> Surface:
    """Sample points on a ring that lies flat, of one size whatever the height."""
    ring, tube = 0.26, 0.13
    around, _ = _mark_scales(4 * math.pi**2 * ring * tube, 2 * math.pi * ring)
    up, _ = _mark_scales(4 * math.pi**2 * ring * tube, 2 * math.pi * tube)
    # The outer half of a ring has more surface than the inner half, so the angle around the tube is not uniform: it is
    # drawn through the inverse of the surface that lies below each angle.
    covered = _TURNS + tube / ring * np.sin(2 * math.pi * _TURNS) / (2 * math.pi)
    turn, through = rng.random(count), np.interp(rng.random(count), covered, _TURNS)
    reach = ring + tube * np.cos(2 * math.pi * through)
    x, y = reach * np.cos(2 * math.pi * turn), reach * np.sin(2 * math.pi * turn)
    xyz = np.stack([x, y, tube * (1 + np.sin(2 * math.pi * through))], axis=1)
    return Surface(xyz, around * turn, up * through)


_SURFACES: Mapping[str, Callable[[np.random.Generator, int, float], Surface]] = {
    "cube": _sample_cube,
    "sphere": _sample_sphere,
    "cylinder": _sample_cylinder,
    "cone": _sample_cone,
    "torus": _sample_torus,
}
