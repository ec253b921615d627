"""JSON schemas of the boxes in tool calls, with exact bounds for the next number.

Constrained decoding asks after every number of a box which numbers can follow, so that the model can only write boxes
that are read and shown.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts import Box
from vilavt_toolkit.contracts.pixel_budget import MAX_ASPECT
from vilavt_toolkit.vision.boxes import BoxError, compose_box, pixel_box

ToCoordinate = Callable[[float], float]
"""Maps a fraction (0 to 1) of a region's axis to a coordinate of the source."""
PixelRounding = Callable[[Box, int, int], tuple[int, int, int, int]]
"""Maps a box and an image's width and height to the pixels that are cut out (left, upper, right, lower)."""
MIN_SIDE = 1 - 1e-9
"""Pixels of the shortest side of a box; a little less than 1, since a coordinate may be off by a rounding error."""


@dataclass(frozen=True)
class ImageAxis:
    """An axis of a region of an image, along which a box is written in whole units."""

    units: int
    to_pixels: Callable[[int], float]
    """Maps a unit to a pixel coordinate of the image, with the very floating-point steps of reading a box."""
    count_pixels: Callable[[float, float], int]
    """Counts the pixels that are cut out between two coordinates."""
    min_side: float
    """Pixels of the shortest side that can be read."""

    def pixels_between(self, start: int, end: int) -> int:
        """Count the pixels that are cut out between two units."""
        return self.count_pixels(self.to_pixels(start), self.to_pixels(end))

    def valid_ends(self, start: int, shortest: int, longest: int) -> range:
        """Return the ends of a side that begins at `start`, if the other side can be `shortest` to `longest` pixels.

        An end is valid if its side is long enough, and no more than MAX_ASPECT times as long or as short as some
        length of the other side.
        """
        # Both conditions are monotonic in the end, and from one end to the next a side grows by less than a factor
        # of MAX_ASPECT. Hence the valid ends have no gaps, and two binary searches find them.
        ends = range(start + 1, self.units + 1)
        first = bisect_left(ends, True, key=lambda end: self._is_long_enough(start, end, shortest))
        too_long = bisect_left(ends, True, key=lambda end: self.pixels_between(start, end) > MAX_ASPECT * longest)
        return ends[first:too_long]

    def side_lengths(self, start: int) -> tuple[int, int]:
        """Return the pixels of the shortest and of the longest side that begins at `start`."""
        first = self.valid_ends(start, 0, math.ceil(self.to_pixels(self.units)))[0]
        return self.pixels_between(start, first), self.pixels_between(start, self.units)

    @property
    def max_shortest_side(self) -> int:
        """Pixels of the shortest side at the start where it is longest."""
        unit = (self.to_pixels(self.units) - self.to_pixels(0)) / self.units
        # A side that begins inside a pixel touches one pixel more than its length.
        return math.ceil(max(unit, self.min_side)) + 1

    def valid_starts(self, shortest: int, longest: int) -> range:
        """Return the starts from which some end is valid for these lengths of the other side."""
        starts = range(self.units)
        return starts[: bisect_left(starts, True, key=lambda start: not self.valid_ends(start, shortest, longest))]

    def _is_long_enough(self, start: int, end: int, other: int) -> bool:
        long_enough = self.to_pixels(end) - self.to_pixels(start) >= self.min_side
        return long_enough and MAX_ASPECT * self.pixels_between(start, end) >= other


def coordinate_functions(within: Box) -> list[ToCoordinate]:
    """Return for each axis of the region `within` the map from fractions to coordinates that reading a box uses."""
    axes = len(within) // 2

    def map_axis(axis: int) -> ToCoordinate:
        low, high = within[axis], within[axes + axis]
        # `compose_box` itself, so that bounds and reading agree to the last bit.
        return lambda share: compose_box((low, high), (share,))[0]

    return [map_axis(axis) for axis in range(axes)]


def image_axes(
    coordinates: Sequence[ToCoordinate],
    units: tuple[int, ...],
    size: tuple[int, int],
    rounding: PixelRounding = pixel_box,
    min_side: float = MIN_SIDE,
) -> tuple[ImageAxis, ImageAxis]:
    """Return the axes x and y of a region of an image of `size` (width, height), whose boxes `rounding` cuts out."""

    def make_axis(place: int) -> ImageAxis:
        def count_pixels(start: float, end: float) -> int:
            # Both axes are rounded alike, so a box that is one pixel high serves to count along either.
            first, _, after, _ = rounding((start, 0.0, end, 1.0), size[place], 1)
            return after - first

        return ImageAxis(units[place], lambda unit: coordinates[place](unit / units[place]), count_pixels, min_side)

    return make_axis(0), make_axis(1)


def next_number_range(axes: tuple[ImageAxis, ImageAxis], numbers: tuple[int, ...]) -> range:
    """Return the values of the next of x1, y1, x2, y2 after `numbers`, all of which can be completed to a valid box.

    A box is valid if it can be read and its crop can be made a view.
    """
    x, y = axes
    match numbers:
        case ():
            # Of y only this is known: wherever it begins, it can be as short as that, so no side of x is too short.
            return x.valid_starts(y.max_shortest_side, y.pixels_between(0, y.units))
        case (x1,):
            return y.valid_starts(*x.side_lengths(x1))
        case (x1, y1):
            return x.valid_ends(x1, *y.side_lengths(y1))
        case (x1, y1, x2):
            width = x.pixels_between(x1, x2)
            return y.valid_ends(y1, width, width)
        case _:
            return range(0)


def box_array_schema(
    numbers: tuple[int, ...], next_range: range, units: tuple[int, ...], key: str
) -> Mapping[str, Any]:
    """Return the JSON schema of the box `key` that begins with `numbers` and goes on with one of `next_range`.

    The numbers after the next one are only bounded by the region, which is `units` long along its axes. Raises
    BoxError if `next_range` is empty before the box is complete.
    """
    count = 2 * len(units)
    if len(numbers) < count and not next_range:
        raise BoxError(f"no {key} can begin with {list(numbers)}; choose another region.")
    items: list[Mapping[str, Any]] = [{"const": number} for number in numbers]
    for place in range(len(numbers), count):
        # A box has at least one unit: an upper side cannot be 0, and a lower side cannot be the region's end.
        least, most = int(place >= len(units)), units[place % len(units)] - int(place < len(units))
        if place == len(numbers):
            least, most = next_range[0], next_range[-1]
        items.append({"type": "integer", "minimum": least, "maximum": most})
    return {"type": "array", "prefixItems": items, "items": False, "minItems": count, "maxItems": count}


def object_schema(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return the JSON schema of an object with these properties and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}
