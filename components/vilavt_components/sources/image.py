"""Source `image`: an image file, or an image in memory."""

from __future__ import annotations

import errno
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from vilavt_components.sources.box_schema import Edge, along, box_array, edges_of, image_axes, image_range, keys_of
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.vision.boxes import (
    BoxError,
    pixel_box,
    read_bbox,
    read_box,
    relative,
    shown,
    truncated_box,
    write_bbox,
)

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
"""[h, w, 3]"""

# Told apart by people with colour-blindness too, bright enough to stand on photographs.
_COLOURS = ("#ff4136", "#2ecc40", "#0d8bff", "#ffdc00", "#f012be", "#39cccc", "#ff851b", "#b10dc9")
_PILLOW_LIMIT = threading.Lock()
_IN_MEMORY = "the image in memory"
# A zoom into less than a pixel, and into that, would be enlarged without end.
_LEAST = 0.5


@dataclass(frozen=True)
class ImageConfig:
    """Settings of source `image`."""

    max_pixels: int = setting(400_000_000, help="most pixels an image may have when decoded", minimum=1)
    rounding: Literal["outward", "truncate"] = setting(
        "outward",
        help="which pixels a box cuts out: all that it touches, or those between its edges cut to whole numbers, as "
        "the paper's code does",
    )


@sources.register("image", ImageConfig)
class ImageSource(Source):
    """An image: a path, a PIL image, or uint8 pixels [h, w, 3]. Boxes are (x1, y1, x2, y2) in its pixels."""

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
        """Open a path, a PIL image or uint8 pixels [h, w, 3]; raises InputError naming the file.

        The orientation noted by the camera is applied, what is transparent becomes white, of an animation the
        first frame is taken, and deeper pixels become 8 bit: 16 bit scaled from their whole range, 32-bit
        integers and floats from 0..1, 0..255 or 0..65535, whichever is the first to hold them, and otherwise
        from their own range.
        """
        if isinstance(original, np.ndarray):
            return cls(_checked_array(original, config.max_pixels), rounding=config.rounding)
        if isinstance(original, Image.Image):
            return cls(_decoded(original, _IN_MEMORY, config.max_pixels), rounding=config.rounding)
        if isinstance(original, str | os.PathLike):
            path = Path(os.fspath(original))
            return cls(_read(path, config.max_pixels), str(path), config.rounding)
        raise InputError(
            f"an image must be a path, a PIL image or an array of uint8 [h, w, 3], not {type(original).__name__}."
        )

    @property
    def extent(self) -> Box:
        """The box of the whole image."""
        height, width = self.pixels.shape[:2]
        return 0.0, 0.0, float(width), float(height)

    def read_box(self, value: Mapping[str, Any], within: Box, steps: int | tuple[int, ...]) -> Box:
        """Read {"bbox_2d": [x1, y1, x2, y2]} inside the region `within`; raises BoxError."""
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, x2, y2] is missing.')
        for key in value:
            if key != self.box_key:
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of an image; leave it out.')
        if self._truncates:
            return self._read_exactly(value[self.box_key], within, steps)
        return read_bbox(value[self.box_key], within, steps, self.box_key)

    def _read_exactly(self, value: Any, within: Box, steps: int | tuple[int, ...]) -> Box:
        """Read a box by way of fractions of the image: what is cut to whole pixels must be rounded as the paper's."""
        part = read_box(value, (0.0, 0.0, 1.0, 1.0), steps, self.box_key)
        edges = self._exact_edges(within)
        box = tuple(edges[place % 2](share) for place, share in enumerate(part))
        if min(box[2] - box[0], box[3] - box[1]) < _LEAST:
            raise BoxError(
                f"{self.box_key} {shown(value)} is smaller than half a pixel of the image; choose a larger box."
            )
        return box

    def _exact_edges(self, within: Box) -> list[Edge]:
        """Where shares of the region `within` are along x and y, by way of fractions of the image."""
        outer = relative(self.extent, within)

        def edge(axis: int) -> Edge:
            start, length, side = outer[axis], outer[2 + axis] - outer[axis], self.extent[2 + axis]
            return lambda share: min((start + share * length) * side, side)

        return [edge(0), edge(1)]

    def box_schema(self, within: Box, steps: int | tuple[int, ...], begun: tuple[int, ...] = ()) -> Mapping[str, Any]:
        """JSON schema of {"bbox_2d": [x1, y1, x2, y2]}: large enough to be read, not too long for its breadth."""
        units, (height, width) = along(steps, 2), self.pixels.shape[:2]
        if self._truncates:
            axes = image_axes(self._exact_edges(within), units, (width, height), truncated_box, _LEAST)
        else:
            axes = image_axes(edges_of(within), units, (width, height))
        return keys_of({self.box_key: box_array(begun, image_range(axes, begun), units, self.box_key)})

    def write_box(self, box: Box, within: Box, steps: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_2d": [x1, y1, x2, y2]}, rounded outward to whole steps of `within`."""
        return {self.box_key: write_bbox(box, within, steps)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut the pixels of `box`, as `rounding` says, out of the original; data uint8 [h, w, 3]."""
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


def _checked_array(array: NDArray[Any], most: int) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InputError(
            f"an image array must be uint8 [h, w, 3] and not empty, not {array.dtype} {list(array.shape)}; "
            "convert it, or pass a PIL image."
        )
    _check_size(array.shape[1], array.shape[0], _IN_MEMORY, most)
    return array


def _check_size(width: int, height: int, name: str, most: int) -> None:
    if width * height > most:
        raise InputError(
            f"{name} is too large: {width} x {height} pixels, and at most {most:,} are read; "
            "scale it down or raise max_pixels."
        )
    if width * height == 0:
        raise InputError(f"{name} has no pixels: {width} x {height}; give another image.")


def _read(path: Path, most: int) -> Pixels:
    """Read an image file; whatever is wrong with it becomes one InputError that names it."""
    try:
        _check_file(path)
        with _limited(most), path.open("rb") as file, Image.open(file) as image:
            return _decoded(image, str(path), most)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image in a known format; convert it to PNG or JPEG.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path} is too large: at most {most:,} pixels are read; scale it down or raise max_pixels."
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from error
    except OSError as error:
        advice = "check the path of the image" if error.errno == errno.ENAMETOOLONG else "get the image again"
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {advice}.") from error


def _check_file(path: Path) -> None:
    """Refuse what is no file with something in it; raises OSError where even that cannot be seen."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of an image file.")
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path of the image.")
    if not path.is_file():
        raise InputError(f"{path} is no regular file; give the path of an image file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); get the image again.")


@contextmanager
def _limited(most: int) -> Iterator[None]:
    """Let Pillow refuse images of more than `most` pixels, those inside containers (icons, TIFF) included.

    Pillow's own limit is a global that allows some 179 megapixels at most; hence the lock.
    """
    with _PILLOW_LIMIT, warnings.catch_warnings():
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = most
        # Its other warnings are about metadata; what matters of the pixels it raises.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decoded(image: Image.Image, name: str, most: int) -> Pixels:
    """Decode a PIL image to 8-bit RGB."""
    _check_size(*image.size, name, most)
    try:
        image.load()
        _check_size(*image.size, name, most)  # icons learn their size on loading
        return np.array(_flat(_upright(image, name)))
    except (InputError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception as error:  # malformed data makes Pillow's decoders raise almost anything
        raise InputError(
            f"{name} is damaged or cut off ({error or type(error).__name__}); get the image again."
        ) from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    """Apply the orientation that the camera noted; a note that cannot be read is none."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are good, and EXIF blocks are often malformed
        log.warning("%s: its EXIF data cannot be read (%s); it is taken as upright.", name, error)
        return image


def _flat(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB."""
    if image.mode.startswith("I;16"):
        # To native 16 bit first: Pillow clips where it converts these modes itself.
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_scaled(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return image.convert("RGB")


def _scaled(values: NDArray[np.float64]) -> Pixels:
    """Scale pixels of unknown range to 0..255: from the first usual range that holds them, or their own."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    usual = [top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top]
    bottom, top = (0.0, usual[0]) if usual else (low, high)
    scaled = (np.clip(values, bottom, top) - bottom) * (255 / max(top - bottom, 1e-12))
    # What is no number, as where a depth camera saw nothing, becomes black.
    pixels: Pixels = np.rint(np.nan_to_num(scaled, nan=0.0)).astype(np.uint8)
    return pixels


# --- Drawing ----------------------------------------------------------------------------------------


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[int, Box]]) -> None:
    """Draw (number, box) pairs on a picture, in its pixels; the numbers keep clear of each other."""
    drawing, size = ImageDraw.Draw(picture), max(picture.size)
    font = ImageFont.load_default(size=max(12, size // 32))
    line = max(2, size // 200)
    for number, box in boxes:
        _outline(drawing, box, box_colour(number), line, picture.size)
    taken: list[Box] = []
    for number, box in boxes:
        taken.append(label(drawing, str(number), box, box_colour(number), font, picture.size, taken))


def box_colour(number: int) -> str:
    """The colour of the box of a number, from 1."""
    return _COLOURS[(number - 1) % len(_COLOURS)]


def _outline(drawing: ImageDraw.ImageDraw, box: Box, colour: str, line: int, size: tuple[int, int]) -> None:
    left, upper, right, lower = pixel_box(box, *size)
    inner = (left + line, upper + line, right - 1 - line, lower - 1 - line)
    drawing.rectangle((left, upper, right - 1, lower - 1), outline=colour, width=line)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        drawing.rectangle(inner, outline="black")  # keeps a line visible on a part of its own colour


def label(
    drawing: ImageDraw.ImageDraw,
    text: str,
    box: Box,
    colour: str,
    font: Any,
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Write a box's number at its first corner where it hides no other number; returns where."""
    left, upper, right, lower = drawing.textbbox((0, 0), text, font=font)
    width, height = right - left + 10, lower - upper + 10
    corners = [(x, y) for y in (box[1], box[3] - height) for x in (box[0], box[2] - width)]
    # Beside the corners last: the same box may be asked for more than four times.
    corners += [(box[0] + step * width, box[1]) for step in range(1, 6)]
    places = []
    for x, y in corners:
        x, y = min(max(x, 0.0), size[0] - width), min(max(y, 0.0), size[1] - height)
        places.append((x, y, x + width, y + height))
    place = next((p for p in places if not any(_meet(p, other) for other in taken)), places[0])
    drawing.rectangle(place, fill=colour, outline="black")
    drawing.text((place[0] + 5 - left, place[1] + 5 - upper), text, fill="black", font=font)
    return place


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
