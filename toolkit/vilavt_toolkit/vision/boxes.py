"""Boxes: reading them from tool calls, writing them, nesting them, and the pixels that they touch.

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
"""The count of numbers of a box, by its axes, in words."""


_ROUNDING = 1e-6
"""Largest distance from a whole number of a coordinate that went through a division and back."""


class BoxError(ValueError):
    """A box of a tool call cannot be used. The message is written for the model."""


def read_bbox(value: Any, within: Box, box_units: int | tuple[int, ...], key: str = "bbox_2d") -> Box:
    """Read the box of a tool call and return it in pixels of the original image.

    `value` is [x1, y1, x2, y2] in units of which `within` has `box_units`, on each side or along x and y. Raises
    BoxError, in words for the model, unless it is an ordered box inside the region, of a pixel or more.
    """
    box = read_box(value, within, box_units, key)
    if min(box[2] - box[0], box[3] - box[1]) < 1 - _ROUNDING:
        raise BoxError(f"{key} {shorten_value(value)} is smaller than one pixel of the image; choose a larger box.")
    return box


def read_box(value: Any, within: Box, box_units: int | tuple[int, ...], key: str) -> Box:
    """Read the box of a tool call, along as many axes as `within` has; return it in coordinates of the original.

    `value` is [x1, y1, .., x2, y2, ..] in units of which `within` has `box_units`, on each side or along each axis.
    Raises BoxError, in words for the model, unless it is an ordered box inside the region.
    """
    axes = _axis_letters(within)
    numbers, units = _check_numbers(value, key, axes), units_per_axis(box_units, len(axes))
    lows, highs = numbers[: len(axes)], numbers[len(axes) :]
    name = f"{key} {shorten_value(value)}"
    # Units of a region are counted. Pixels of a view are measured, and the paper's code reads fractions of them.
    if isinstance(box_units, int) and any(number != int(number) for number in numbers):
        raise BoxError(f"{name} must hold whole numbers from 0 to {box_units}.")
    # One clear fault at a time, in the order in which a model can fix it: order, emptiness, then range.
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
    return compose_box(within, tuple(number / most for number, most in parts))


def write_bbox(box: Box, within: Box, box_units: int | tuple[int, ...]) -> list[int]:
    """Write `box` in whole units of the region `within`, rounded outward and clipped; the inverse of `read_box`.

    Raises BoxError if the box and the region do not overlap.
    """
    axes, part = len(box) // 2, relative_box(within, box)
    starts, ends = [], []
    for axis, (start, end, units) in enumerate(
        zip(part[:axes], part[axes:], units_per_axis(box_units, axes), strict=True)
    ):
        if start >= 1 or end <= 0 or start >= end:
            raise BoxError(f"box {shorten_value(box)} has no part in the region {shorten_value(within)}.")
        slack = _ROUNDING + _rounding_share(within[axis], within[axes + axis]) * units
        first = max(0, math.floor(start * units + slack))
        last = min(units, math.ceil(end * units - slack))
        # A box thinner than a unit still gets one, or `read_box` would refuse what was written.
        first = min(first, units - 1)
        starts.append(first)
        ends.append(max(last, first + 1))
    return [*starts, *ends]


def _rounding_share(low: float, high: float) -> float:
    """Return the largest rounding error of a coordinate between two others, as a share of their distance."""
    # On a map, a small object lies at coordinates of millions, which have few digits left behind the point.
    return 4 * math.ulp(max(abs(low), abs(high))) / (high - low)


def compose_box(within: Box, part: Box) -> Box:
    """Return the box of the original for `part`, which is in fractions (0 to 1) of `within`."""
    axes = len(within) // 2

    def interpolate(axis: int, share: float) -> float:
        low, high = within[axis], within[axes + axis]
        # In this form 0 and 1 give the edges of the region exactly, however deep boxes are nested.
        return min(max(low * (1 - share) + high * share, low), high)

    return tuple(interpolate(place % axes, share) for place, share in enumerate(part))


def relative_box(within: Box, box: Box) -> Box:
    """Return `box` in fractions of the region `within`; the inverse of `compose_box`."""
    axes = len(within) // 2
    lows, sides = within[:axes], [high - low for low, high in zip(within[:axes], within[axes:], strict=True)]
    return tuple((edge - lows[place % axes]) / sides[place % axes] for place, edge in enumerate(box))


def pixel_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a `width` x `height` image that `box` touches: at least one, none outside."""
    left, right = _touched_pixels(box[0], box[2], width)
    upper, lower = _touched_pixels(box[1], box[3], height)
    return left, upper, right, lower


def truncated_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a `width` x `height` image between the truncated edges of `box`: at least one.

    The paper's code cuts crops like this: a last row or column that `box` touches in part is left out.
    """
    left, upper = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return left, upper, min(max(int(box[2]), left + 1), width), min(max(int(box[3]), upper + 1), height)


def _axis_letters(box: Box) -> str:
    """Return the letters of the axes of a box."""
    return "xyz"[: len(box) // 2]


def units_per_axis(box_units: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return the units along every axis."""
    return (box_units,) * axes if isinstance(box_units, int) else box_units


def _touched_pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the first pixel that [low, high) touches, and the one after the last, inside 0..size."""
    # An edge that rounding left just beyond a whole number must not take in one more row of pixels.
    first = min(max(math.floor(low + _ROUNDING), 0), size - 1)
    return first, min(max(math.ceil(high - _ROUNDING), first + 1), size)


def _check_numbers(value: Any, key: str, axes: str) -> list[float]:
    """Return the finite numbers of a box, two for each axis, or raise BoxError."""
    count = _COUNTS[len(axes)]
    if not isinstance(value, list | tuple) or len(value) != 2 * len(axes):
        names = ", ".join(f"{axis}{end}" for end in (1, 2) for axis in axes)
        raise BoxError(f"{key} must be a list of {count} numbers [{names}], not {shorten_value(value)}.")
    for part in value:
        # In Python a bool is an int, but true is not a coordinate.
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise BoxError(
                f"{key} must hold {count} numbers, but {shorten_value(part)} in {shorten_value(value)} is none."
            )
        # Also rejects NaN, which compares as False. Larger numbers would overflow in `compose_box`.
        if not abs(part) < 1e300:
            raise BoxError(f"{key} must hold {count} finite numbers, not {shorten_value(value)}.")
    return [float(part) for part in value]


def shorten_value(value: Any) -> str:
    """Write a value of a tool call for an error message, shortened: it may be anything that JSON can hold."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = ", ".join(shorten_value(part) for part in value[:6])
        return f"[{inner}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return "an object"
    # Before `str`: Python refuses to write integers of more than 4,300 digits.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**12:
        return f"{'-' if value < 0 else ''}a number of {int(math.log10(abs(value))) + 1} digits"
    if isinstance(value, float):
        return f"{value:.6g}"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + '..."'
