"""Where the boxes of a tool call may go on, number by number; what JSON schemas of boxes say."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts import Box
from vilavt_toolkit.contracts.pixel_budget import MAX_ASPECT
from vilavt_toolkit.vision.boxes import BoxError, compose, pixel_box

Edge = Callable[[float], float]
"""The coordinate, along one axis, of a share (0 to 1) of a region."""
Cut = Callable[[Box, int, int], tuple[int, int, int, int]]
"""The pixels (left, upper, right, lower) that a box cuts out of an image of a width and a height."""
LEAST = 1 - 1e-9
"""Pixels of the shortest side of a box; a little less than one, since coordinates went through a division and back."""


@dataclass(frozen=True)
class Axis:
    """An axis of a region of an image, along which a box is written in whole units."""

    units: int
    at: Callable[[int], float]
    """The coordinate of a unit, in pixels of the image; as reading a box computes it."""
    count: Callable[[float, float], int]
    """How many pixels are cut out between two coordinates."""
    least: float
    """Pixels of the shortest side that is read."""

    def between(self, start: int, end: int) -> int:
        """How many pixels are cut out between two units."""
        return self.count(self.at(start), self.at(end))

    def ends(self, start: int, shortest: int, longest: int) -> range:
        """Where a side that begins at `start` may end, long enough and not too long for some length of the other side.

        The other side is cut from `shortest` to `longest` pixels long. Lengths grow by less than a factor of
        MAX_ASPECT from one end to the next, so that what may be is without gaps.
        """
        after = range(start + 1, self.units + 1)
        first = bisect_left(after, True, key=lambda end: self._reaches(start, end, shortest))
        beyond = bisect_left(after, True, key=lambda end: self.between(start, end) > MAX_ASPECT * longest)
        return after[first:beyond]

    def lengths(self, start: int) -> tuple[int, int]:
        """Pixels of the shortest and of the longest side that begins at `start`."""
        first = self.ends(start, 0, math.ceil(self.at(self.units)))[0]
        return self.between(start, first), self.between(start, self.units)

    @property
    def longest_of_shortest(self) -> int:
        """Pixels of the shortest side, at most, wherever it begins: it may touch one pixel more than it is long."""
        unit = (self.at(self.units) - self.at(0)) / self.units
        return math.ceil(max(unit, self.least)) + 1

    def starts(self, shortest: int, longest: int) -> range:
        """Where a side may begin that is to go with such lengths of the other side."""
        all_of_them = range(self.units)
        return all_of_them[: bisect_left(all_of_them, True, key=lambda start: not self.ends(start, shortest, longest))]

    def _reaches(self, start: int, end: int, other: int) -> bool:
        return self.at(end) - self.at(start) >= self.least and MAX_ASPECT * self.between(start, end) >= other


def edges_of(within: Box) -> list[Edge]:
    """Where shares of a region are along its axes, as `read_bbox` and `read_box` compute it."""
    axes = len(within) // 2

    def edge(axis: int) -> Edge:
        low, high = within[axis], within[axes + axis]
        return lambda share: compose((low, high), (share,))[0]

    return [edge(axis) for axis in range(axes)]


def image_axes(
    edges: Sequence[Edge], units: tuple[int, ...], size: tuple[int, int], cut: Cut = pixel_box, least: float = LEAST
) -> tuple[Axis, Axis]:
    """The axes x and y of a region of an image of `size` (width, height), whose boxes are cut out by `cut`."""

    def axis(place: int) -> Axis:
        def count(start: float, end: float) -> int:
            first, _, behind, _ = cut((start, 0.0, end, 1.0), size[place], 1)
            return behind - first

        return Axis(units[place], lambda unit: edges[place](unit / units[place]), count, least)

    return axis(0), axis(1)


def image_range(axes: tuple[Axis, Axis], begun: tuple[int, ...]) -> range:
    """What the next number of x1, y1, x2, y2 may be, so that the box can be read, and its crop made a view."""
    x, y = axes
    match begun:
        case ():
            # Of y no more is known than that it can be so short wherever it begins; hence nothing of x is too short.
            return x.starts(y.longest_of_shortest, y.between(0, y.units))
        case (x1,):
            return y.starts(*x.lengths(x1))
        case (x1, y1):
            return x.ends(x1, *y.lengths(y1))
        case (x1, y1, x2):
            width = x.between(x1, x2)
            return y.ends(y1, width, width)
        case _:
            return range(0)


def box_array(begun: tuple[int, ...], following: range, units: tuple[int, ...], key: str) -> Mapping[str, Any]:
    """JSON schema of the box `key` that begins with `begun`, its next number in `following`; raises BoxError for none.

    Of the numbers behind it no more is said than that they lie in the region, which is `units` long along its axes.
    """
    count = 2 * len(units)
    if len(begun) < count and not following:
        raise BoxError(f"no {key} goes on behind {list(begun)}; choose another region.")
    items: list[Mapping[str, Any]] = [{"const": number} for number in begun]
    for place in range(len(begun), count):
        least, most = int(place >= len(units)), units[place % len(units)] - int(place < len(units))
        if place == len(begun):
            least, most = following[0], following[-1]
        items.append({"type": "integer", "minimum": least, "maximum": most})
    return {"type": "array", "prefixItems": items, "items": False, "minItems": count, "maxItems": count}


def keys_of(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """JSON schema of an object of these properties and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def along(steps: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The units along each of so many axes."""
    return (steps,) * axes if isinstance(steps, int) else steps
