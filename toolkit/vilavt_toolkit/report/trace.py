"""The regions of a dialogue as people look at them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Box, Source
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.utils.pictures import CAPTION, GAP, beside, captioned, font, framed, save
from vilavt_toolkit.vision.heat_map import PANEL, heat_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from vilavt_toolkit.vision.explain import Explanation


def looked_at(session: Session, numbers: Iterable[int]) -> tuple[TraceRegion, ...]:
    """Regions that were zoomed into, by number, with their crops; first views are left out."""
    found = []
    for number in numbers:
        placed = session.trajectory.regions[number]
        if placed.box is None:
            continue
        source = session.sources[placed.source]
        found.append(TraceRegion(number, placed.source, source, placed.box, source.crop(placed.box).data))
    return tuple(found)


_SOURCE, _CROP = 640, 288


_LINE, _MOST_LINES, _MOST_CHARACTERS = 26, 30, 4000


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
    """The `data` that the source cut out, for images uint8 [h, w, 3]."""


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


def draw_trace(trace: Trace, path: str | os.PathLike[str], explained: Mapping[int, Explanation] | None = None) -> None:
    """Write the picture of `trace` to `path`, whole or not at all; raises InputError where it cannot be written.

    With `explained`, by the index of a region, heat maps show what the encoder attended to.
    """
    save(trace_picture(trace, explained), path)


def trace_picture(trace: Trace, explained: Mapping[int, Explanation] | None = None) -> Image:
    """Draw the sources with numbered boxes, the crops beside them, the words below, and heat maps at the end."""
    sources = beside([captioned(*pair) for pair in _source_pictures(trace)], columns=1)
    crops = [captioned(_picture(region, _CROP), _region_name(trace, region)) for region in _regions(trace)]
    pictures = [sources] if sources is not None else []
    if crops:
        # As many columns as it takes not to be much taller than the sources.
        height = max(sources.height if sources is not None else 0, _CROP)
        columns = min(4, -(-len(crops) * (_CROP + CAPTION + GAP) // (height + GAP)))
        stacked = beside(crops, columns)
        pictures += [stacked] if stacked is not None else []
    upper = beside(pictures, columns=2)
    width = max(960, upper.width if upper is not None else 0)
    heat = _heat(trace, explained or {}, width)
    page = beside([part for part in (upper, _words(trace, width), heat) if part is not None], columns=1)
    assert page is not None
    return framed(page)


def _heat(trace: Trace, explained: Mapping[int, Explanation], width: int) -> Image | None:
    found = [region for region in _regions(trace) if region.index in explained]
    shown = [(_region_name(trace, region), explained[region.index], _picture(region, PANEL)) for region in found]
    return heat_rows(shown, width)


def _picture(region: TraceRegion, size: int) -> Image:
    return region.source.picture(region.crop, size)


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


def _words(trace: Trace, width: int) -> Image:
    """The question, every turn, the answer and its cost, wrapped to `width` pixels."""
    from PIL import Image, ImageDraw

    letters, lines = font(), []
    for label, text in _entries(trace):
        for number, line in enumerate(wrapped(text, width - _INDENT, letters.getlength)):
            lines.append((label, line, number == 0))
    page = Image.new("RGB", (width, max(1, len(lines)) * _LINE), "white")
    drawing = ImageDraw.Draw(page)
    for row, (label, line, first) in enumerate(lines):
        if first:
            drawing.text((0, row * _LINE), label, fill="#777777", font=letters)
        drawing.text((_INDENT, row * _LINE), line, fill=_COLOURS.get(label, "#333333"), font=letters)
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
