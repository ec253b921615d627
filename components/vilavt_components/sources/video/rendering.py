"""A picture of a video: frames side by side, each below its time, with numbered boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vilavt_components.sources.image import draw_boxes
from vilavt_components.sources.picture_decoding import Pixels
from vilavt_toolkit.contracts import Box

_ROW = 4
"""Most frames in a row of the picture."""
_LARGEST = 4096
"""Longest side of a picture whose size is not given."""


@dataclass(frozen=True)
class FrameTile:
    """A frame to be drawn."""

    caption: str
    pixels: Callable[[], Pixels]
    """Decodes the frame when it is drawn, so that never two are in memory."""
    boxes: Sequence[tuple[int, Box]]
    """(number, box in the frame's pixels)"""


@dataclass(frozen=True)
class _Page:
    """The layout of a picture: `columns` frames in a row, `width` x `height` each, below captions of height `head`."""

    size: tuple[int, int]
    columns: int
    width: int
    height: int
    head: int
    gap: int

    def caption_corner(self, place: int) -> tuple[int, int]:
        """Return the upper left corner of a frame's caption."""
        row, column = divmod(place, self.columns)
        return column * (self.width + self.gap), row * (self.height + self.head + self.gap)


def draw_frames(tiles: Sequence[FrameTile], frame: tuple[int, int], size: int | None) -> Image.Image:
    """Draw frames of size `frame` (width, height) on a picture whose longer side is `size` pixels.

    None: that of the frames side by side, 4096 at most.
    """
    columns = min(len(tiles), _ROW)
    rows = -(-len(tiles) // columns)
    page = _fit_page(columns, rows, frame, size or min(_LARGEST, max(columns * frame[0], rows * frame[1])))
    picture = Image.new("RGB", page.size, "white")
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(8, round(page.head * 0.7)))
    for place, tile in enumerate(tiles):
        x, y = page.caption_corner(place)
        drawing.text((x + 2, y), tile.caption, fill="black", font=font)
        # One frame at a time is decoded: all of them at full size may not fit into memory.
        shown = Image.fromarray(tile.pixels()).resize((page.width, page.height), Image.Resampling.LANCZOS)
        scale_x, scale_y = page.width / frame[0], page.height / frame[1]
        scaled = []
        for number, (x1, y1, x2, y2) in tile.boxes:
            scaled.append((number, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)))
        draw_boxes(shown, scaled)
        picture.paste(shown, (x, y + page.head))
    return picture


def _fit_page(columns: int, rows: int, frame: tuple[int, int], size: int) -> _Page:
    """Lay out the largest frames that fit a picture whose longer side is exactly `size`."""
    # Frames share what captions and gaps leave of both sides; the tighter side decides their scale.
    head, gap = max(10, min(28, size // 20)), max(2, size // 80)
    across, down = size - (columns - 1) * gap, size - (rows - 1) * gap - rows * head
    scale = max(min(across / (columns * frame[0]), down / (rows * frame[1])), 1e-9)
    width, height = max(1, int(frame[0] * scale)), max(1, int(frame[1] * scale))
    whole = columns * (width + gap) - gap, rows * (height + head + gap) - gap
    longer = whole.index(max(whole))
    return _Page((size, whole[1]) if longer == 0 else (whole[0], size), columns, width, height, head, gap)
