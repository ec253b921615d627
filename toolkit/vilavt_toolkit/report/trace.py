"""A picture of how one question was answered: the sources with the regions looked at, the crops, the words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vilavt_toolkit.contracts import Box, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

_SOURCE, _CROP, _GAP, _CAPTION = 640, 288, 24, 30
_TEXT, _LINE, _MOST_LINES, _MOST_CHARACTERS = 18, 26, 30, 4000
_INDENT = 120
_COLOURS = {"question": "#111111", "inquiry": "#0b5394", "answer": "#0b6b2b", "feedback": "#a31515"}


@dataclass(frozen=True)
class TraceRegion:
    """A region the model looked at."""

    index: int
    """Its index in the dialogue."""
    source_index: int
    source: Source
    box: Box
    crop: Any
    """The original's pixels in the box, uint8 [h, w, 3]."""


@dataclass(frozen=True)
class TraceTurn:
    """A turn of the model and what came of it."""

    thought: str
    inquiry: str = ""
    regions: tuple[TraceRegion, ...] = ()
    feedback: str = ""
    """What the model was told where its turn could not be carried out."""
    answer: str | None = None


@dataclass(frozen=True)
class Trace:
    """One answered question."""

    question: str
    sources: tuple[Source, ...]
    turns: tuple[TraceTurn, ...]
    why: str = ""
    """Why it stopped."""
    cost: Mapping[str, float | int] = field(default_factory=dict)


def draw_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the picture of `trace` to `path`, whole or not at all; raises InputError where it cannot be written."""
    picture = trace_picture(trace)
    with atomic_write(path) as temporary:
        try:
            picture.save(temporary)
        except ValueError as error:  # a suffix that Pillow has no writer for
            raise InputError(f"{os.fspath(path)} has no suffix of a picture; name it .png.") from error


def trace_picture(trace: Trace) -> Image:
    """Draw the sources with numbered boxes, the crops beside them, and the words below."""
    from PIL import Image

    sources = _beside([_captioned(*pair) for pair in _source_pictures(trace)], columns=1)
    crops = [_captioned(_enlarged(region.crop), _region_name(trace, region)) for region in _regions(trace)]
    pictures = [sources] if sources is not None else []
    if crops:
        # As many columns as it takes not to be much taller than the sources.
        height = max(sources.height if sources is not None else 0, _CROP)
        columns = min(4, -(-len(crops) * (_CROP + _CAPTION + _GAP) // (height + _GAP)))
        stacked = _beside(crops, columns)
        pictures += [stacked] if stacked is not None else []
    upper = _beside(pictures, columns=2)
    width = max(960, upper.width if upper is not None else 0)
    words = _words(trace, width)
    top = upper.height + _GAP if upper is not None else 0
    page = Image.new("RGB", (width + 2 * _GAP, top + words.height + 2 * _GAP), "white")
    if upper is not None:
        page.paste(upper, (_GAP, _GAP))
    page.paste(words, (_GAP, _GAP + top))
    return page


def _regions(trace: Trace) -> list[TraceRegion]:
    return [region for turn in trace.turns for region in turn.regions]


def _boxes(trace: Trace, source_index: int) -> list[TraceRegion]:
    return [region for region in _regions(trace) if region.source_index == source_index]


def _region_name(trace: Trace, region: TraceRegion) -> str:
    """The number that the region's box has on its source's picture, and the source where there are several."""
    number = _boxes(trace, region.source_index).index(region) + 1
    return f"box {number}" if len(trace.sources) == 1 else f"source {region.source_index + 1}, box {number}"


def _source_pictures(trace: Trace) -> list[tuple[Image, str]]:
    several = len(trace.sources) > 1
    return [
        (
            source.draw([region.box for region in _boxes(trace, index)], _SOURCE),
            f"source {index + 1}" if several else "",
        )
        for index, source in enumerate(trace.sources)
    ]


def _enlarged(view: Any) -> Image:
    """A view with its longer side at the width of the crops' column, its pixels smoothed."""
    from PIL import Image

    image = Image.fromarray(np.asarray(view, dtype=np.uint8))
    scale = _CROP / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=_TEXT)


def _captioned(picture: Image, caption: str) -> Image:
    """Put a caption over a picture; none where it is empty."""
    from PIL import Image, ImageDraw

    if not caption:
        return picture
    width = max(picture.width, round(_font().getlength(caption)))
    whole = Image.new("RGB", (width, picture.height + _CAPTION), "white")
    ImageDraw.Draw(whole).text((0, 2), caption, fill="black", font=_font())
    whole.paste(picture, (0, _CAPTION))
    return whole


def _beside(pictures: Sequence[Image], columns: int) -> Image | None:
    """Set pictures in rows of `columns`, none over another; None for no pictures."""
    from PIL import Image

    if not pictures:
        return None
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(min(columns, len(pictures)))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = sum(widths) + _GAP * (len(widths) - 1), sum(heights) + _GAP * (len(heights) - 1)
    whole, y = Image.new("RGB", size, "white"), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=False):
            whole.paste(picture, (x, y))
            x += width + _GAP
        y += height + _GAP
    return whole


def _words(trace: Trace, width: int) -> Image:
    """The question, every turn, the answer and its cost, wrapped to `width` pixels."""
    from PIL import Image, ImageDraw

    font, lines = _font(), []
    for label, text in _entries(trace):
        for number, line in enumerate(wrapped(text, width - _INDENT, font.getlength)):
            lines.append((label, line, number == 0))
    page = Image.new("RGB", (width, max(1, len(lines)) * _LINE), "white")
    drawing = ImageDraw.Draw(page)
    for row, (label, line, first) in enumerate(lines):
        if first:
            drawing.text((0, row * _LINE), label, fill="#777777", font=font)
        drawing.text((_INDENT, row * _LINE), line, fill=_COLOURS.get(label, "#333333"), font=font)
    return page


def _entries(trace: Trace) -> list[tuple[str, str]]:
    """What is written below the pictures, as (label, text)."""
    entries = [("question", trace.question)]
    for turn in trace.turns:
        entries.append(("thought", turn.thought))
        if turn.inquiry or turn.regions:
            names = ", ".join(_region_name(trace, region) for region in turn.regions)
            entries.append(("inquiry", f"{turn.inquiry} ({names})" if names else turn.inquiry))
        entries.append(("feedback", turn.feedback))
        entries.append(("answer", turn.answer or ""))
    entries.append(("stopped", trace.why))
    spent = ((key.replace("_", " "), value) for key, value in trace.cost.items())
    costs = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in spent]
    entries.append(("cost", ", ".join(costs)))
    return [(label, text) for label, text in entries if text]


def wrapped(text: str, width: float, length: Any) -> list[str]:
    """Break a text into lines of at most `width` as `length` measures them; a word too long is broken too."""
    lines: list[str] = []
    more = len(text) > _MOST_CHARACTERS
    for paragraph in text[:_MOST_CHARACTERS].splitlines() or [""]:
        line = ""
        for word in "".join(c if c.isprintable() else " " for c in paragraph).split():
            joined = f"{line} {word}" if line else word
            if length(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while length(word) > width:
                fits = max(1, next(n for n in range(1, len(word) + 1) if length(word[:n]) > width) - 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        if line:
            lines.append(line)
    more = more or len(lines) > _MOST_LINES
    return [*lines[:_MOST_LINES], "..."] if more else lines
