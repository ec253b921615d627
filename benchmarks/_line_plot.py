"""A line plot as SVG, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 380, 70, 60, 50


def draw_line_plot(
    title: str, x_name: str, y_name: str, points: Sequence[tuple[float, float, float, float]], line: tuple[float, float]
) -> str:
    """Draw points (x, median, low, high) with their quartiles and the line a + b x; both axes begin at zero."""
    most_x = max(point[0] for point in points)
    most_y = max(max(point[3] for point in points), line[0] + line[1] * most_x) * 1.05

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + x / most_x * (_WIDTH - _LEFT - 30), 1),
            round(_HEIGHT - _BOTTOM - y / most_y * (_HEIGHT - _BOTTOM - _TOP), 1),
        )

    parts = [
        _text_element(_WIDTH / 2, 26, title, 16),
        _text_element(_WIDTH / 2, _HEIGHT - 14, x_name),
        _rotated_text(y_name),
    ]
    parts += _axis_elements(to_pixels, most_x, most_y, [point[0] for point in points])
    # From where the line crosses the x axis, if it does: below it there is no time.
    first = max(0.0, -line[0] / line[1]) if line[1] else 0.0
    (x1, y1), (x2, y2) = to_pixels(first, line[0] + line[1] * first), to_pixels(most_x, line[0] + line[1] * most_x)
    parts.append(_line_element(x1, y1, x2, y2, "#999999", 'stroke-dasharray="6 4"'))
    for x, median, low, high in points:
        (cx, cy), (_, y_low), (_, y_high) = to_pixels(x, median), to_pixels(x, low), to_pixels(x, high)
        parts.append(_line_element(cx, y_low, cx, y_high, "#0b5394", 'stroke-width="2"'))
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="4" fill="#0b5394"/>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _axis_elements(to_pixels: object, most_x: float, most_y: float, ticks: Sequence[float]) -> list[str]:
    assert callable(to_pixels)
    (left, bottom), (right, _), (_, top) = to_pixels(0, 0), to_pixels(most_x, 0), to_pixels(0, most_y)
    parts = [_line_element(left, bottom, right, bottom, "#333333"), _line_element(left, bottom, left, top, "#333333")]
    parts += [
        _text_element(to_pixels(x, 0)[0], bottom + 18, f"{x:g}", 12) for x in ticks if x >= most_x / 8 or x == ticks[0]
    ]
    for part in range(5):
        y = most_y * part / 4
        parts.append(_text_element(left - 8, to_pixels(0, y)[1] + 4, f"{y:,.0f}", 12, "end"))
    return parts


def _line_element(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" {more}/>'


def _text_element(x: float, y: float, text: str, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#111111">{escape(text)}</text>'


def _rotated_text(text: str) -> str:
    middle = _HEIGHT / 2
    return f'<g transform="rotate(-90 18 {middle})">{_text_element(18, middle, text)}</g>'
