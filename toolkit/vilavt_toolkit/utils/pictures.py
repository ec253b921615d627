"""Pictures for reports: enlarge, caption, and arrange them side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, CAPTION, TEXT = 24, 30, 18
"""Pixels between pictures, of the line over one, and of its letters."""


def enlarge_view(view: Any, side: int) -> Image:
    """Enlarge a view, uint8 [h, w, 3], smoothly until its longer side has `side` pixels."""
    from PIL import Image

    image = Image.fromarray(np.asarray(view, dtype=np.uint8))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def load_font() -> Any:
    """Load the font of all pictures."""
    from PIL import ImageFont

    return ImageFont.load_default(size=TEXT)


def add_caption(picture: Image, caption: str) -> Image:
    """Put a caption over a picture, unless it is empty."""
    from PIL import Image, ImageDraw

    if not caption:
        return picture
    width = max(picture.width, round(load_font().getlength(caption)))
    whole = Image.new("RGB", (width, picture.height + CAPTION), "white")
    ImageDraw.Draw(whole).text((0, 2), caption, fill="black", font=load_font())
    whole.paste(picture, (0, CAPTION))
    return whole


def arrange_in_grid(pictures: Sequence[Image], columns: int) -> Image | None:
    """Arrange pictures in rows of `columns` without overlap; return None if there are none."""
    from PIL import Image

    if not pictures:
        return None
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    # The last row may be shorter: a column is as wide as the widest picture that stands in it.
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(min(columns, len(pictures)))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = sum(widths) + GAP * (len(widths) - 1), sum(heights) + GAP * (len(heights) - 1)
    whole, y = Image.new("RGB", size, "white"), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=False):
            whole.paste(picture, (x, y))
            x += width + GAP
        y += height + GAP
    return whole


def add_border(picture: Image) -> Image:
    """Put a white border around a picture."""
    from PIL import Image

    page = Image.new("RGB", (picture.width + 2 * GAP, picture.height + 2 * GAP), "white")
    page.paste(picture, (GAP, GAP))
    return page


def check_picture_name(path: str | os.PathLike[str]) -> None:
    """Raise InputError if Pillow writes no format with this suffix; called before anything is drawn."""
    from PIL import Image

    suffix = os.path.splitext(path)[1].lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise InputError(_unknown_suffix_text(path))


def _unknown_suffix_text(path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(path)} has no suffix of a picture. Name it .png."


def save_picture(picture: Image, path: str | os.PathLike[str]) -> None:
    """Write a picture to `path`, whole or not at all; raises InputError."""
    with atomic_write(path) as temporary:
        try:
            picture.save(temporary)
        except ValueError as error:  # a suffix that Pillow has no writer for
            raise InputError(_unknown_suffix_text(path)) from error
