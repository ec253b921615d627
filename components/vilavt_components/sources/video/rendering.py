"""Frames of a video side by side in one picture, each under its time, with numbered boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vilavt_components.sources.image import Pixels, draw_boxes
from vilavt_toolkit.contracts import Box

_ROW = 4
"""Frames beside each other at most; more go into further rows."""
_LARGEST = 4096
"""Longer side of a picture whose size is not given."""


@dataclass(frozen=True)
class Tile:
    """A frame to be drawn."""

    caption: str
    pixels: Callable[[], Pixels]
    """Gives the frame when it is its turn, so that no two are held."""
    boxes: Sequence[tuple[int, Box]]
    """(number, box in the frame's pixels)"""


@dataclass(frozen=True)
class _Page:
    """Where frames stand: `columns` of them in a row, each `width` x `height` below `head` pixels for its caption."""

    size: tuple[int, int]
    columns: int
    width: int
    height: int
    head: int
    gap: int

    def corner(self, place: int) -> tuple[int, int]:
        """The upper left corner of a frame's caption."""
        row, column = divmod(place, self.columns)
        return column * (self.width + self.gap), row * (self.height + self.head + self.gap)


def strip(tiles: Sequence[Tile], frame: tuple[int, int], size: int | None) -> Image.Image:
    """Draw frames of size `frame` (width, height); the longer side is `size`; None: theirs together, 4096 at most."""
    columns = min(len(tiles), _ROW)
    rows = -(-len(tiles) // columns)
    page = _page(columns, rows, frame, size or min(_LARGEST, max(columns * frame[0], rows * frame[1])))
    picture = Image.new("RGB", page.size, "white")
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(8, round(page.head * 0.7)))
    for place, tile in enumerate(tiles):
        x, y = page.corner(place)
        drawing.text((x + 2, y), tile.caption, fill="black", font=font)
        shown = Image.fromarray(tile.pixels()).resize((page.width, page.height), Image.Resampling.LANCZOS)
        along, down = page.width / frame[0], page.height / frame[1]
        scaled = [(n, (b[0] * along, b[1] * down, b[2] * along, b[3] * down)) for n, b in tile.boxes]
        draw_boxes(shown, scaled)
        picture.paste(shown, (x, y + page.head))
    return picture


def _page(columns: int, rows: int, frame: tuple[int, int], size: int) -> _Page:
    """The largest frames that fit, the picture's longer side exactly `size`."""
    head, gap = max(10, min(28, size // 20)), max(2, size // 80)
    across, down = size - (columns - 1) * gap, size - (rows - 1) * gap - rows * head
    scale = max(min(across / (columns * frame[0]), down / (rows * frame[1])), 1e-9)
    width, height = max(1, int(frame[0] * scale)), max(1, int(frame[1] * scale))
    whole = columns * (width + gap) - gap, rows * (height + head + gap) - gap
    longer = whole.index(max(whole))
    return _Page((size, whole[1]) if longer == 0 else (whole[0], size), columns, width, height, head, gap)
