"""The source 'my_part': pictures in .npy files, uint8 [h, w] or [h, w, 3], such as scans.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      source: {name: my_part, max_pixels: 10000000}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import setting, sources
from vilavt_toolkit.vision.boxes import BoxError, pixel_box, read_bbox, write_bbox

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    max_pixels: int = setting(100_000_000, help="most pixels of a picture", minimum=1)


@sources.register("my_part", MyPartConfig)
class MyPart(Source):
    """Open pictures from .npy files; boxes are (x1, y1, x2, y2) in pixels of the original."""

    # Encoders of this modality can read the crops. A modality of its own needs an encoder of its own.
    modality = "image"
    box_key = "bbox_2d"
    suffix = ".npy"

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    @classmethod
    def open(cls, original: Any, config: MyPartConfig) -> MyPart:
        """Open a path, or wrap an array in memory; raises InputError, which names the file and the remedy."""
        name = "the array in memory" if isinstance(original, np.ndarray) else str(original)
        try:
            # Without pickles: loading one runs code from the file.
            found = original if isinstance(original, np.ndarray) else np.load(name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read as .npy ({error}). Check the path, or save it again.") from error
        if found.ndim == 2:
            found = np.stack([found] * 3, axis=-1)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
            raise InputError(f"{name} holds {found.dtype} {list(found.shape)}. Save uint8 [h, w] or [h, w, 3].")
        if found.shape[0] * found.shape[1] > config.max_pixels:
            raise InputError(f"{name} has too many pixels. Raise model.source.max_pixels, or make it smaller.")
        return cls(found)

    @property
    def extent(self) -> Box:
        """The box of the whole picture."""
        return 0.0, 0.0, float(self.pixels.shape[1]), float(self.pixels.shape[0])

    def read_box(self, value: Mapping[str, Any], within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read a tool call's box inside the region `within`; raises BoxError in words for the model."""
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, x2, y2] is missing.')
        return read_bbox(value[self.box_key], within, box_units, self.box_key)

    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write a box as a tool call's keys, relative to the region `within`."""
        return {self.box_key: write_bbox(box, within, box_units)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut a box out of the original, never out of an earlier crop; the data is uint8 [h, w, 3]."""
        left, upper, right, lower = pixel_box(box, self.pixels.shape[1], self.pixels.shape[0])
        return Crop(np.ascontiguousarray(self.pixels[upper:lower, left:right]), self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw numbered boxes on a picture whose longer side is `size` pixels; None: the original's size."""
        from PIL import Image, ImageDraw

        scale = (size or max(self.extent)) / max(self.extent)
        picture = Image.fromarray(self.pixels).resize([max(1, round(side * scale)) for side in self.extent[2:]])
        pen = ImageDraw.Draw(picture)
        for number, box in enumerate(boxes, 1):
            corners = [side * scale for side in box]
            pen.rectangle(corners, outline="red", width=2)
            pen.text((corners[0] + 4, corners[1] + 2), str(number), fill="red")
        return picture

    def save(self, path: Path) -> None:
        """Write the picture into a file that `open` takes, for saved chats."""
        np.save(path, self.pixels)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(max_pixels=1_000_000)
