"""Boxes: reading and writing them, nesting them; of images, cutting them out, and the size of what is cut out.

A box of an image is (x1, y1, x2, y2) in pixels of the original, x to the right and y down, right and lower edge
excluded; one with a third axis is (x1, y1, z1, x2, y2, z2) in the original's coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vilavt_toolkit.contracts import Box


_COUNTS = {2: "four", 3: "six"}
"""How many numbers a box has, by its axes."""


# Coordinates that went through a division and back differ from whole numbers by this much at most.
_ROUNDING = 1e-6


class BoxError(ValueError):
    """A box in a tool call that cannot be used; the message is written for the model."""


def read_bbox(value: Any, within: Box, steps: int | tuple[int, ...], key: str = "bbox_2d") -> Box:
    """Read a tool call's box and return it in pixels of the original.

    `value` is [x1, y1, x2, y2] in units of which `within` has `steps`, on each side or along x and y.
    Raises BoxError, in words for the model, for all but an ordered box of a pixel at least inside the region.
    """
    box = read_box(value, within, steps, key)
    if min(box[2] - box[0], box[3] - box[1]) < 1 - _ROUNDING:
        raise BoxError(f"{key} {shown(value)} is smaller than one pixel of the image; choose a larger box.")
    return box


def read_box(value: Any, within: Box, steps: int | tuple[int, ...], key: str) -> Box:
    """Read a tool call's box along as many axes as `within` has; return it in coordinates of the original.

    `value` is [x1, y1, .., x2, y2, ..] in units of which `within` has `steps`, on each side or along each axis.
    Raises BoxError, in words for the model, for all but an ordered box inside the region.
    """
    axes = _axes(within)
    numbers, units = _numbers(value, key, axes), _units(steps, len(axes))
    lows, highs = numbers[: len(axes)], numbers[len(axes) :]
    name = f"{key} {shown(value)}"
    for axis, low, high in zip(axes, lows, highs, strict=True):
        if low > high:
            raise BoxError(f"{name} is inverted: {axis}1 must be less than {axis}2.")
        if low == high:
            raise BoxError(f"{name} is empty: {axis}1 must be less than {axis}2.")
    if min(lows) < 0 or any(high > most for high, most in zip(highs, units, strict=True)):
        first, *others = [f"{axis} runs from 0 to {most}" for axis, most in zip(axes, units, strict=True)]
        *middle, last = [other.replace(" runs", "") for other in others]
        raise BoxError(f"{name} is out of range: {', '.join([first, *middle])} and {last}.")
    parts = zip(numbers, (*units, *units), strict=True)
    return compose(within, tuple(number / most for number, most in parts))


def write_bbox(box: Box, within: Box, steps: int | tuple[int, ...]) -> list[int]:
    """Write `box` in whole units of the region `within`, rounded outward and clipped; undoes `read_bbox`, `read_box`.

    Raises BoxError where the box and the region do not meet.
    """
    axes, part = len(box) // 2, relative(within, box)
    starts, ends = [], []
    for start, end, units in zip(part[:axes], part[axes:], _units(steps, axes), strict=True):
        if start >= 1 or end <= 0 or start >= end:
            raise BoxError(f"box {shown(box)} has no part in the region {shown(within)}.")
        first = max(0, math.floor(start * units + _ROUNDING))
        last = min(units, math.ceil(end * units - _ROUNDING))
        first = min(first, units - 1)
        starts.append(first)
        ends.append(max(last, first + 1))
    return [*starts, *ends]


def compose(within: Box, part: Box) -> Box:
    """Return the box of the original that `part`, in fractions (0 to 1) of `within`, stands for."""
    axes = len(within) // 2

    def along(axis: int, share: float) -> float:
        low, high = within[axis], within[axes + axis]
        # Written so that 0 and 1 give the region's own edges exactly, however deep boxes are nested.
        return min(max(low * (1 - share) + high * share, low), high)

    return tuple(along(place % axes, share) for place, share in enumerate(part))


def relative(within: Box, box: Box) -> Box:
    """Return `box` in fractions of the region `within`; the inverse of `compose`."""
    axes = len(within) // 2
    lows, sides = within[:axes], [high - low for low, high in zip(within[:axes], within[axes:], strict=True)]
    return tuple((edge - lows[place % axes]) / sides[place % axes] for place, edge in enumerate(box))


def pixel_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a `width` x `height` image that `box` touches: at least one, none outside."""
    left, right = _pixels(box[0], box[2], width)
    upper, lower = _pixels(box[1], box[3], height)
    return left, upper, right, lower


def truncated_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a `width` x `height` image between the edges of `box` cut to whole numbers; at least one.

    As the paper's code has it: what `box` touches of a last row or column is left out.
    """
    left, upper = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return left, upper, min(max(int(box[2]), left + 1), width), min(max(int(box[3]), upper + 1), height)


def _axes(box: Box) -> str:
    """The letters of a box's axes."""
    return "xyz"[: len(box) // 2]


def _units(steps: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return the units along every axis."""
    return (steps,) * axes if isinstance(steps, int) else steps


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and pixel after the last that [low, high) touches, inside 0..size."""
    first = min(max(math.floor(low + _ROUNDING), 0), size - 1)
    return first, min(max(math.ceil(high - _ROUNDING), first + 1), size)


def _numbers(value: Any, key: str, axes: str) -> list[float]:
    """Return the finite numbers of a box, two for each axis, or raise BoxError."""
    count = _COUNTS[len(axes)]
    if not isinstance(value, list | tuple) or len(value) != 2 * len(axes):
        names = ", ".join(f"{axis}{end}" for end in (1, 2) for axis in axes)
        raise BoxError(f"{key} must be a list of {count} numbers [{names}], not {shown(value)}.")
    for part in value:
        # bool is an int in Python, but true is no coordinate.
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise BoxError(f"{key} must hold {count} numbers, but {shown(part)} in {shown(value)} is none.")
        if not abs(part) < 1e300:
            raise BoxError(f"{key} must hold {count} finite numbers, not {shown(value)}.")
    return [float(part) for part in value]


def shown(value: Any) -> str:
    """Write a value as the model did, cut short: it may be anything JSON can hold."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = ", ".join(shown(part) for part in value[:6])
        return f"[{inner}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**12:
        return f"{'-' if value < 0 else ''}a number of {int(math.log10(abs(value))) + 1} digits"
    if isinstance(value, float):
        return f"{value:.6g}"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + '..."'
