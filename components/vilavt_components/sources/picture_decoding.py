"""From an image that Pillow opened to 8-bit RGB pixels, upright, transparent pixels white."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.pillow import explain_errors, read_orientation

Pixels = NDArray[np.uint8]
"""[h, w, 3]"""

_STRIP = 2**20
"""Pixels that are converted at a time."""
_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Steps between the grey values of a PNG of 2 and of 4 bits, once Pillow has made them 8 bits."""
_USUAL_TOPS = (1.0, 255.0, 65535.0)


def decode_picture(image: Image.Image, name: str, max_pixels: int) -> Pixels:
    """Decode an opened image to 8-bit RGB, upright; raises InputError, before decoding if it is too large."""
    with explain_errors(name, max_pixels):
        check_size(*image.size, name, max_pixels)
        key = _ColourKey.find(image)
        image.load()
        # Once more, since the size of an icon is known only after loading.
        check_size(*image.size, name, max_pixels)
        return _turn_upright(_to_rgb(image, key), read_orientation(image, name))


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse an image that would fill the memory, or that has no pixels; raises InputError."""
    if width * height > max_pixels:
        raise InputError(
            f"{name} is too large: {width} x {height} pixels, and at most {max_pixels:,} are read. "
            "Scale it down or raise max_pixels."
        )
    if width * height == 0:
        raise InputError(f"{name} has no pixels: {width} x {height}. Give another image.")


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn an image by its EXIF orientation, 1 to 8."""
    # Each value names the place of the first row and of the first column: top, right, bottom or left.
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# --- Transparent values -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _ColourKey:
    """The one value of a PNG whose pixels are transparent, where Pillow loses bits of it."""

    grey: int | None = None
    """For 16-bit grey."""
    low: Pixels | None = None
    """For 16-bit RGB, of which Pillow decodes the high bytes: the low bytes of all pixels."""
    rgb: tuple[int, ...] = ()

    @classmethod
    def find(cls, image: Image.Image) -> _ColourKey:
        """Find the transparent value of an image that is not decoded yet, and correct that of 2 and 4 bits."""
        value, raw = image.info.get("transparency"), _find_raw_mode(image)
        if isinstance(value, int) and image.mode == "L":
            # Only the bits of the file's depth count. Pillow compares the value as it stands with 8-bit pixels.
            step = _GREY_STEPS.get(raw, 1)
            image.info["transparency"] = (value & (255 // step)) * step
        elif isinstance(value, int) and image.mode.startswith("I;16"):
            return cls(grey=value)
        elif isinstance(value, tuple) and raw == "RGB;16B" and not getattr(image, "is_animated", False):
            return cls(low=_decode_low_bytes(image), rgb=value)
        return cls()

    def mask(self, strip: Image.Image, top: int) -> NDArray[np.bool_] | None:
        """Return the pixels of a strip from row `top` that have the value; None if Pillow finds them itself."""
        if self.grey is not None:
            return np.asarray(np.asarray(strip) == self.grey)
        if self.low is None:
            return None
        high = np.asarray(strip)
        low = self.low[top : top + len(high)]
        wanted = np.array(self.rgb)
        return np.asarray((high == wanted >> 8).all(axis=2) & (low == (wanted & 255)).all(axis=2))


def _find_raw_mode(image: Image.Image) -> str:
    """Return how the pixels of a PNG lie in its file, "" for other images."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0].args) if image.format == "PNG" and tiles else ""


def _decode_low_bytes(image: Any) -> Pixels:
    """Decode a PNG of 16-bit RGB, keeping the low bytes."""
    image.fp.seek(0)
    # Not closed, since that would close the file of the other one.
    low: Any = Image.open(image.fp, formats=["PNG"])
    # Read as little-endian, the high byte of each number is what the file has as the low byte.
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    return np.asarray(low)


# --- Modes ------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, key: _ColourKey) -> Pixels:
    """Turn an image of any mode into RGB."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    limits = _find_limits(image) if image.mode in ("I", "F") else (0.0, 1.0)
    for top, strip in _cut_strips(image):
        transparent = key.mask(strip, top)
        part = pixels[top : top + strip.height]
        if transparent is None:
            part[:] = _strip_to_rgb(strip, limits)
        else:
            # It is used above. Pillow would use it again when it converts.
            del strip.info["transparency"]
            part[:] = _strip_to_rgb(strip, limits)
            part[transparent] = 255
    return pixels


def _cut_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield parts of an image with their first rows, since conversions need up to sixteen bytes a pixel."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def _strip_to_rgb(image: Image.Image, limits: tuple[float, float]) -> Pixels:
    """Turn a part of an image into RGB; `limits` are what becomes black and white of 32-bit values."""
    if image.mode.startswith("I;16"):
        # By hand, since Pillow clips values above 255 when it converts these modes itself.
        deep = np.asarray(image).astype(np.uint32)
        return ((deep + 128) // 257).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        with np.errstate(invalid="ignore"):  # some kinds of NaN
            values = np.asarray(image, dtype=np.float64)
        return _scale_to_bytes(values, limits)[..., None]
    if image.mode == "La":  # from which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _find_limits(image: Image.Image) -> tuple[float, float]:
    """Return what is black and white of 32-bit pixels: the first usual range that holds them, or their own."""
    low, high = np.inf, -np.inf
    for _, strip in _cut_strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:  # no pixel is finite
        return 0.0, np.inf
    top = next((top for top in _USUAL_TOPS if low >= 0 and high <= top), None)
    return (low, high) if top is None else (0.0, top)


def _scale_to_bytes(values: NDArray[np.float64], limits: tuple[float, float]) -> Pixels:
    """Scale pixels between two limits to 0..255."""
    bottom, top = limits
    scaled = (np.clip(values, bottom, top) - bottom) * (255 / max(top - bottom, 1e-12))
    # NaN becomes black: depth cameras write it where they measured nothing.
    pixels: Pixels = np.rint(np.nan_to_num(scaled, nan=0.0)).astype(np.uint8)
    return pixels
