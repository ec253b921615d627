"""Source `image`: an image file, or an image in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vilavt_components.sources.box_schema import (
    ToCoordinate,
    box_array_schema,
    coordinate_functions,
    image_axes,
    next_number_range,
    object_schema,
)
from vilavt_components.sources.picture_decoding import Pixels, check_size, decode_picture
from vilavt_components.sources.regular_file import check_regular_file, to_path
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.pillow import MAX_PIXELS, explain_errors, open_picture
from vilavt_toolkit.vision.boxes import (
    BoxError,
    pixel_box,
    read_bbox,
    read_box,
    relative_box,
    shorten_value,
    truncated_box,
    units_per_axis,
    write_bbox,
)

# Chosen to differ for people with colour-blindness too, and to be bright enough for photographs.
_BOX_COLOURS = ("#ff4136", "#2ecc40", "#0d8bff", "#ffdc00", "#f012be", "#39cccc", "#ff851b", "#b10dc9")
_IN_MEMORY = "the image in memory"
_MIN_SIDE = 0.5
"""Pixels of the shortest side of a box with `rounding: truncate`.

Such a box may lie inside one pixel. Without a limit, zooms into zooms would be enlarged without end.
"""


@dataclass(frozen=True)
class ImageConfig:
    """Settings of source `image`."""

    max_pixels: int = setting(MAX_PIXELS, help="most pixels an image may have when decoded", minimum=1)
    rounding: Literal["outward", "truncate"] = setting(
        "outward",
        help="pixels that a box cuts out: outward takes all that it touches, truncate those between its edges cut to "
        "whole numbers, as the paper's code does",
    )


@sources.register("image", ImageConfig)
class ImageSource(Source):
    """An image from a path, a PIL image, or uint8 pixels [h, w, 3]. Boxes are (x1, y1, x2, y2) in its pixels."""

    modality: ClassVar[str] = "image"
    box_key: ClassVar[str] = "bbox_2d"

    def __init__(self, pixels: Pixels, name: str = _IN_MEMORY, rounding: str = "outward") -> None:
        self.pixels = pixels
        self._name = name
        self._truncates = rounding == "truncate"

    @property
    def name(self) -> str:
        """The path as it was given, or a word for an image in memory."""
        return self._name

    @classmethod
    def tiny(cls) -> ImageConfig:
        """Return settings that take small images only."""
        return ImageConfig(max_pixels=1_000_000)

    @classmethod
    def open(cls, original: Any, config: ImageConfig) -> ImageSource:
        """Open a path, a file inside another, a PIL image or uint8 pixels [h, w, 3]; raises InputError naming the file.

        The image is turned upright by its EXIF orientation, transparent pixels become white, and an animation shows
        its first frame. Deeper pixels become 8 bit: 16-bit ones are scaled from their whole range, 32-bit integers
        and floats from the first of 0..1, 0..255 and 0..65535 that holds them all, or else from their own range.
        """
        if isinstance(original, np.ndarray):
            # An array is used as it is, without a copy.
            return cls(_check_array(original, config.max_pixels), rounding=config.rounding)
        if isinstance(original, Image.Image):
            return cls(decode_picture(original, _IN_MEMORY, config.max_pixels), rounding=config.rounding)
        if isinstance(original, EmbeddedFile):
            return cls(_read_file(original, config.max_pixels), original.name, config.rounding)
        if isinstance(original, str | os.PathLike):
            path = to_path(original)
            return cls(_read_file(path, config.max_pixels), str(path), config.rounding)
        raise InputError(
            f"an image must be a path, a PIL image or an array of uint8 [h, w, 3], not {type(original).__name__}."
        )

    @property
    def extent(self) -> Box:
        """The box of the whole image."""
        height, width = self.pixels.shape[:2]
        return 0.0, 0.0, float(width), float(height)

    def read_box(self, value: Mapping[str, Any], within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read {"bbox_2d": [x1, y1, x2, y2]} inside the region `within`; raises BoxError."""
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, x2, y2] is missing.')
        for key in value:
            if key != self.box_key:
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of an image; leave it out.')
        if self._truncates:
            return self._read_box_by_fractions(value[self.box_key], within, box_units)
        return read_bbox(value[self.box_key], within, box_units, self.box_key)

    def _read_box_by_fractions(self, value: Any, within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read a box with the paper's rounding errors, which decide the pixel that an edge is cut to."""
        part = read_box(value, (0.0, 0.0, 1.0, 1.0), box_units, self.box_key)
        to_x, to_y = self._fraction_functions(within)
        box = to_x(part[0]), to_y(part[1]), to_x(part[2]), to_y(part[3])
        if min(box[2] - box[0], box[3] - box[1]) < _MIN_SIDE:
            raise BoxError(
                f"{self.box_key} {shorten_value(value)} is smaller than half a pixel of the image; choose a larger box."
            )
        return box

    def _fraction_functions(self, within: Box) -> list[ToCoordinate]:
        """Return for x and y the map from fractions of `within` to pixels, computed as in the paper's code."""
        outer = relative_box(self.extent, within)

        def map_axis(axis: int) -> ToCoordinate:
            start, length, side = outer[axis], outer[2 + axis] - outer[axis], self.extent[2 + axis]
            # By way of fractions of the whole image, as there: the direct way rounds to other last bits.
            return lambda share: min((start + share * length) * side, side)

        return [map_axis(0), map_axis(1)]

    def box_schema(
        self, within: Box, box_units: int | tuple[int, ...], begun: tuple[int, ...] = ()
    ) -> Mapping[str, Any]:
        """Return the JSON schema of {"bbox_2d": [x1, y1, x2, y2]}, a box that can be read and shown."""
        units, (height, width) = units_per_axis(box_units, 2), self.pixels.shape[:2]
        if self._truncates:
            axes = image_axes(self._fraction_functions(within), units, (width, height), truncated_box, _MIN_SIDE)
        else:
            axes = image_axes(coordinate_functions(within), units, (width, height))
        return object_schema(
            {self.box_key: box_array_schema(begun, next_number_range(axes, begun), units, self.box_key)}
        )

    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_2d": [x1, y1, x2, y2]}, rounded outward to whole units of `within`."""
        return {self.box_key: write_bbox(box, within, box_units)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut the pixels of `box` out of the original by the setting `rounding`; data uint8 [h, w, 3]."""
        height, width = self.pixels.shape[:2]
        left, upper, right, lower = (truncated_box if self._truncates else pixel_box)(box, width, height)
        return Crop(np.ascontiguousarray(self.pixels[upper:lower, left:right]), self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image.Image:
        """Draw the boxes, numbered from 1, on a picture whose longer side is `size` pixels; None: the image's own."""
        height, width = self.pixels.shape[:2]
        size = size or max(width, height)
        scale = size / max(width, height)
        picture = Image.fromarray(self.pixels).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS
        )
        draw_boxes(picture, [(number, tuple(side * scale for side in box)) for number, box in enumerate(boxes, 1)])
        return picture


# --- Reading ----------------------------------------------------------------------------------------


def _check_array(array: NDArray[Any], max_pixels: int) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InputError(
            f"an image array must be uint8 [h, w, 3] and not empty, not {array.dtype} {list(array.shape)}. "
            "Convert it, or pass a PIL image."
        )
    check_size(array.shape[1], array.shape[0], _IN_MEMORY, max_pixels)
    return array


def _read_file(file: Path | EmbeddedFile, max_pixels: int) -> Pixels:
    """Read an image file; raises InputError naming it, whatever is wrong with it."""
    if isinstance(file, Path):
        with explain_errors(str(file), max_pixels):
            check_regular_file(file, "image", "the path of an image file")
    with open_picture(file, max_pixels) as image:
        return decode_picture(image, str(file), max_pixels)


# --- Drawing ----------------------------------------------------------------------------------------


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[int, Box]]) -> None:
    """Draw (number, box) pairs on a picture, in its pixels."""
    drawing, size = ImageDraw.Draw(picture), max(picture.size)
    font = ImageFont.load_default(size=max(12, size // 32))
    line = max(2, size // 200)
    for number, box in boxes:
        _draw_outline(drawing, box, box_colour(number), line, picture.size)
    # Numbers after all boxes, so that no box hides one; each keeps clear of those before it.
    taken: list[Box] = []
    for number, box in boxes:
        taken.append(draw_label(drawing, str(number), box, box_colour(number), font, picture.size, taken))


def box_colour(number: int) -> str:
    """Return the colour of the box of a number, from 1."""
    return _BOX_COLOURS[(number - 1) % len(_BOX_COLOURS)]


def _draw_outline(drawing: ImageDraw.ImageDraw, box: Box, colour: str, line: int, size: tuple[int, int]) -> None:
    left, upper, right, lower = pixel_box(box, *size)
    inner = (left + line, upper + line, right - 1 - line, lower - 1 - line)
    drawing.rectangle((left, upper, right - 1, lower - 1), outline=colour, width=line)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        # A second, black line keeps the box visible on an area of its own colour.
        drawing.rectangle(inner, outline="black")


def draw_label(
    drawing: ImageDraw.ImageDraw,
    text: str,
    box: Box,
    colour: str,
    font: Any,
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Write a box's number at its first corner where it hides none of the `taken` numbers; returns its place."""
    left, upper, right, lower = drawing.textbbox((0, 0), text, font=font)
    width, height = right - left + 10, lower - upper + 10
    corners = [(x, y) for y in (box[1], box[3] - height) for x in (box[0], box[2] - width)]
    # Places beside the corners come last; they are needed if one box is drawn more than four times.
    corners += [(box[0] + step * width, box[1]) for step in range(1, 6)]
    places = []
    for x, y in corners:
        x, y = min(max(x, 0.0), size[0] - width), min(max(y, 0.0), size[1] - height)
        places.append((x, y, x + width, y + height))
    place = next((p for p in places if not any(_is_overlapping(p, other) for other in taken)), places[0])
    drawing.rectangle(place, fill=colour, outline="black")
    drawing.text((place[0] + 5 - left, place[1] + 5 - upper), text, fill="black", font=font)
    return place


def _is_overlapping(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
