"""Pictures of a dialogue: its sources with numbered boxes, the crops, the words, and heat maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Box, Source
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.utils.pictures import (
    CAPTION,
    GAP,
    add_border,
    add_caption,
    arrange_in_grid,
    load_font,
    save_picture,
)
from vilavt_toolkit.vision.heat_map import PANEL, draw_heat_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from vilavt_toolkit.vision.explain import Explanation


def zoomed_regions(session: Session, numbers: Iterable[int]) -> tuple[TraceRegion, ...]:
    """Return the zoomed regions among these numbers, with their crops. Overviews are left out."""
    found = []
    for number in numbers:
        placed = session.trajectory.regions[number]
        if placed.box is None:
            continue
        source = session.sources[placed.source]
        found.append(TraceRegion(number, placed.source, source, placed.box, source.crop(placed.box).data))
    return tuple(found)


_SOURCE, _CROP = 640, 288
"""Longest side of a source and of a crop, in pixels."""
_LINE, _MOST_LINES, _MOST_CHARACTERS = 26, 30, 4000
"""Height of a line in pixels; lines and characters of one text before it is cut."""
_INDENT = 120
"""Width of the labels beside the text, in pixels."""
_RIGHT, _WRONG = "#0b6b2b", "#a31515"
_COLOURS = {"question": "#111111", "inquiry": "#0b5394", "answer": "#111111", "malformed": _WRONG, "feedback": _WRONG}


@dataclass(frozen=True)
class TraceRegion:
    """A region that the model zoomed into."""

    index: int
    """Its index among the regions of the dialogue."""
    source_index: int
    source: Source
    box: Box
    crop: Any = field(repr=False)
    """The data of the crop, as the source cut it: for images uint8 [h, w, 3]."""


@dataclass(frozen=True)
class DrawnTurn:
    """A turn of the model, as it is drawn: its words, and the regions that it showed."""

    thought: str
    inquiry: str = ""
    regions: tuple[TraceRegion, ...] = ()
    feedback: str = ""
    """Feedback on a turn that could not be carried out."""
    answer: str | None = None
    malformed: str = ""
    """All that the model wrote in a turn that is not in the right form, tags included."""


@dataclass(frozen=True)
class Trace:
    """One answered question, ready to be drawn."""

    question: str
    sources: tuple[Source, ...]
    turns: tuple[DrawnTurn, ...]
    why: str = ""
    """The reason why the dialogue stopped."""
    cost: Mapping[str, float | int] = field(default_factory=dict)
    is_right: bool | None = None
    """True if the answer is right, which decides its colour; None if nobody knows."""


def draw_trace(trace: Trace, path: str | os.PathLike[str], explained: Mapping[int, Explanation] | None = None) -> None:
    """Write the picture of a trace to `path`, whole or not at all. Raises InputError if it cannot be written.

    `explained` holds explanations by region index. Heat maps show what the encoder attended to.
    """
    save_picture(render_trace(trace, explained), path)


def render_trace(trace: Trace, explained: Mapping[int, Explanation] | None = None) -> Image:
    """Return the picture: sources with numbered boxes, crops beside them, words below, and heat maps at the end."""
    sources = arrange_in_grid([add_caption(*pair) for pair in _draw_sources(trace)], columns=1)
    crops = [add_caption(_draw_crop(region, _CROP), _region_name(trace, region)) for region in _all_regions(trace)]
    pictures = [sources] if sources is not None else []
    if crops:
        # As many columns as are needed for the crops to be about as tall as the sources.
        height = max(sources.height if sources is not None else 0, _CROP)
        columns = min(4, -(-len(crops) * (_CROP + CAPTION + GAP) // (height + GAP)))
        stacked = arrange_in_grid(crops, columns)
        pictures += [stacked] if stacked is not None else []
    upper = arrange_in_grid(pictures, columns=2)
    width = max(960, upper.width if upper is not None else 0)
    heat = _draw_heat_maps(trace, explained or {}, width)
    page = arrange_in_grid([part for part in (upper, _draw_text(trace, width), heat) if part is not None], columns=1)
    assert page is not None
    return add_border(page)


def _draw_heat_maps(trace: Trace, explained: Mapping[int, Explanation], width: int) -> Image | None:
    found = [region for region in _all_regions(trace) if region.index in explained]
    shown = [(_region_name(trace, region), explained[region.index], _draw_crop(region, PANEL)) for region in found]
    return draw_heat_rows(shown, width)


def _draw_crop(region: TraceRegion, size: int) -> Image:
    return region.source.draw_crop(region.crop, size)


def _all_regions(trace: Trace) -> list[TraceRegion]:
    return [region for turn in trace.turns for region in turn.regions]


def _regions_of_source(trace: Trace, source_index: int) -> list[TraceRegion]:
    return [region for region in _all_regions(trace) if region.source_index == source_index]


def _region_name(trace: Trace, region: TraceRegion) -> str:
    """Return the number of a region's box in its source's picture, with the source if there are several."""
    number = _regions_of_source(trace, region.source_index).index(region) + 1
    return f"box {number}" if len(trace.sources) == 1 else f"source {region.source_index + 1}, box {number}"


def _draw_sources(trace: Trace) -> list[tuple[Image, str]]:
    pictures = []
    for index, source in enumerate(trace.sources):
        boxes = [region.box for region in _regions_of_source(trace, index)]
        # One source needs no title.
        title = f"source {index + 1}" if len(trace.sources) > 1 else ""
        pictures.append((source.draw(boxes, _SOURCE), title))
    return pictures


def _draw_text(trace: Trace, width: int) -> Image:
    """Draw the question, every turn, the answer and its cost, wrapped to `width` pixels."""
    from PIL import Image, ImageDraw

    # Wrapped before drawing: the height of the page is the number of lines.
    letters, lines = load_font(), []
    colours = _COLOURS if trace.is_right is None else {**_COLOURS, "answer": _RIGHT if trace.is_right else _WRONG}
    for label, text in _text_entries(trace):
        for number, line in enumerate(wrap_text(text, width - _INDENT, letters.getlength)):
            lines.append((label, line, number == 0))
    page = Image.new("RGB", (width, max(1, len(lines)) * _LINE), "white")
    drawing = ImageDraw.Draw(page)
    for row, (label, line, first) in enumerate(lines):
        if first:
            drawing.text((0, row * _LINE), label, fill="#777777", font=letters)
        drawing.text((_INDENT, row * _LINE), line, fill=colours.get(label, "#333333"), font=letters)
    return page


def _text_entries(trace: Trace) -> list[tuple[str, str]]:
    """Return the text below the pictures as (label, text), without empty entries."""
    # Empty texts are added too and left out once, at the end.
    entries = [("question", trace.question)]
    for turn in trace.turns:
        # A malformed turn is shown as it was written, and a thought in it is not shown twice.
        entries.append(("malformed", turn.malformed) if turn.malformed else ("thought", turn.thought))
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


def wrap_text(text: str, width: float, length: Any) -> list[str]:
    """Break a text into lines of at most `width`, measured by `length`.

    A word that is too long for a line is broken too. A long text is cut, and ends in a line of dots.
    """
    lines: list[str] = []
    # Cut first: a model may write one endless word, and measuring it is quadratic in its length.
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
            # Character by character: letters of a proportional font have different widths.
            while length(word) > width:
                fits = max(1, next(n for n in range(1, len(word) + 1) if length(word[:n]) > width) - 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        if line:
            lines.append(line)
    more = more or len(lines) > _MOST_LINES
    return [*lines[:_MOST_LINES], "..."] if more else lines
