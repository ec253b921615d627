"""Curves of accuracy against cost as a PNG, for the documentation: panels side by side under one legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SCALE = 3
"""Curves are drawn this many times larger and reduced, since Pillow's lines have no smooth edges."""
_WIDTH, _HEIGHT = 620, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 56
_TEXT, _ROW = 14, 24
_GREY, _PALE = "#666666", "#e4e4e4"
# Colours that people with colour-blindness can tell apart too (Okabe and Ito).
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#999999")


@dataclass(frozen=True)
class Point:
    """One setting: a cost on each panel's axis, and a share with its interval."""

    costs: tuple[float, ...]
    mean: float
    low: float
    high: float


class _Panel:
    """One panel: its axes and the curves between them."""

    def __init__(self, image: Image.Image, left: int, most: float, span: tuple[float, float]) -> None:
        self.draw, self.left, self.most, self.span = ImageDraw.Draw(image), left, most, span
        self.font = ImageFont.load_default(size=_TEXT * _SCALE)

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a cost and a share."""
        low, high = self.span
        across = self.left + _LEFT + x / self.most * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return across * _SCALE, down * _SCALE

    def draw_axes(self, name: str) -> None:
        """Draw the frame, its ticks, and the names of the axes."""
        (low, high), first = self.span, self.left == 0
        for tick in range(round(low * 10), round(high * 10) + 1):
            (x1, y), (x2, _) = self.to_pixels(0, tick / 10), self.to_pixels(self.most, tick / 10)
            self.draw.line([(x1, y), (x2, y)], fill=_PALE, width=_SCALE)
            self._draw_text(x1 - 8 * _SCALE, y, f"{10 * tick}", "rm")
        for tick in _round_ticks(self.most):
            x, y = self.to_pixels(tick, low)
            self.draw.line([(x, y), (x, y + 5 * _SCALE)], fill=_GREY, width=_SCALE)
            self._draw_text(x, y + 9 * _SCALE, f"{tick:g}", "mt")
        self.draw.line(
            [self.to_pixels(0, high), self.to_pixels(0, low), self.to_pixels(self.most, low)], fill=_GREY, width=_SCALE
        )
        self._draw_text(self.to_pixels(self.most / 2, low)[0], (_HEIGHT - 8) * _SCALE, name, "mb")
        if first:
            self._draw_text((self.left + 4) * _SCALE, 2 * _SCALE, "accuracy in %", "lt")

    def draw_curve(self, points: Sequence[tuple[float, Point]], colour: str) -> None:
        """Draw points, in order, with their intervals."""
        places = [self.to_pixels(x, point.mean) for x, point in points]
        for x, point in points:
            self.draw.line([self.to_pixels(x, point.low), self.to_pixels(x, point.high)], fill=colour, width=_SCALE)
        self.draw.line(places, fill=colour, width=2 * _SCALE)
        for x, y in places:
            r = 4 * _SCALE
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=colour, outline="white", width=_SCALE)

    def _draw_text(self, x: float, y: float, text: str, anchor: str) -> None:
        self.draw.text((x, y), text, fill="#222222", font=self.font, anchor=anchor)


def _round_ticks(most: float) -> list[float]:
    """Return about five round numbers from 0 to `most`."""
    raw = most / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [step * count for count in range(int(most / step + 1e-9) + 1)]


def draw_curves(path: Path, axes: Sequence[str], series: Mapping[str, Sequence[Point]]) -> None:
    """Draw one panel for each cost in `axes`, with all series in each."""
    points = [point for curve in series.values() for point in curve]
    span = math.floor(10 * min(p.low for p in points)) / 10, math.ceil(10 * max(p.high for p in points)) / 10
    rows = math.ceil(len(series) / 4)
    size = (_WIDTH * len(axes), _HEIGHT + _ROW * rows + 12)
    image = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), "white")
    for number, name in enumerate(axes):
        most = 1.05 * max(point.costs[number] for point in points)
        panel = _Panel(image, number * _WIDTH, most, span)
        panel.draw_axes(name)
        # Backwards, so that the first series lies on top.
        for colour, curve in reversed(list(zip(_COLOURS, series.values(), strict=False))):
            panel.draw_curve([(point.costs[number], point) for point in curve], colour)
    _draw_legend(image, list(series), size[0])
    image.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def _draw_legend(image: Image.Image, names: Sequence[str], width: int) -> None:
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=_TEXT * _SCALE)
    for number, (name, colour) in enumerate(zip(names, _COLOURS, strict=False)):
        row, column = divmod(number, 4)
        x = (_LEFT + column * (width - _LEFT) / 4) * _SCALE
        y = (_HEIGHT + 12 + row * _ROW) * _SCALE
        pen.line([(x, y), (x + 28 * _SCALE, y)], fill=colour, width=3 * _SCALE)
        pen.text((x + 36 * _SCALE, y), name, fill="#222222", font=font, anchor="lm")
