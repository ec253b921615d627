"""A cloud seen from a fixed place: points hide what is behind them, boxes are wire frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.image import box_colour, label
from vilavt_toolkit.contracts import Box

if TYPE_CHECKING:
    from PIL.Image import Image

Numbers = NDArray[np.floating[Any]]

_AZIMUTH, _ELEVATION = math.radians(-62), math.radians(28)
"""From where it is looked at: x goes to the right, y away, z up."""
_MARGIN = 0.04
_FINER = 2
"""Drawn so many times as large and made smaller, which smooths edges."""
_MOST = 400_000
"""Points drawn; of more, some."""
_TO_A_CELL = 24
"""Points of a cell whose common plane says how each of them faces the lamp."""
_AMBIENT = 0.55
"""How light what is turned away from the lamp is, of 1."""
_GROUND, _FRAME = (228, 232, 239), "#a4aab6"
_HEIGHTS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours from low to high, of points that have none."""
_EYE = np.array((math.cos(_AZIMUTH), math.sin(_AZIMUTH), math.sin(_ELEVATION)))
_LAMP = np.array((-0.15, -0.5, 0.85))
_FACES = tuple(itertools.product((0, 1), repeat=3))
_EDGES = tuple(
    (a, b) for a, b in itertools.combinations(_FACES, 2) if sum(i != j for i, j in zip(a, b, strict=True)) == 1
)
_HIDDEN = (0, 1, 0)
"""The corner of a box that is farthest away: the edges that meet there are behind what the box holds."""


class _View:
    """An orthographic projection that fits a box into a picture whose longer side is `size`."""

    def __init__(self, extent: Box, size: int) -> None:
        cos, sin = math.cos(_AZIMUTH), math.sin(_AZIMUTH)
        up, along = math.cos(_ELEVATION), math.sin(_ELEVATION)
        self._axes = np.array([(-sin, cos, 0), (along * cos, along * sin, -up), (-up * cos, -up * sin, -along)])
        corners = self._axes @ np.array([_corner(extent, face) for face in _FACES]).T
        low, high = corners.min(axis=1), corners.max(axis=1)
        room = size * (1 - 2 * _MARGIN)
        self.scale = room / max(high[0] - low[0], high[1] - low[1])
        sides = [max(size // 4, round((high[i] - low[i]) * self.scale + 2 * _MARGIN * size)) for i in (0, 1)]
        sides[int((high - low)[:2].argmax())] = size
        self.size = sides[0], sides[1]
        self._offset = np.array([*self.size, 0]) / 2 - self.scale * (low + high) / 2

    def __call__(self, xyz: Numbers) -> Numbers:
        """Points [N, 3] in the picture: to the right, down, and away from the eye; [3, N] in pixels."""
        seen: Numbers = self.scale * (self._axes @ np.asarray(xyz, dtype=np.float64).T) + self._offset[:, None]
        return seen


def draw(xyz: Numbers, colours: Numbers | None, extent: Box, boxes: Sequence[Box], size: int) -> Image:
    """Draw points [N, 3] in their colours [N, 3] (0 to 1; None: by height) and numbered boxes; longer side `size`."""
    from PIL import Image, ImageDraw, ImageFont

    view = _View(extent, size * _FINER)
    picture = Image.new("RGB", view.size, _GROUND)
    drawing = ImageDraw.Draw(picture)
    line = max(2, size // 200) * _FINER
    _floor(drawing, view, extent, max(1, line // 3))
    for number, box in enumerate(boxes, 1):
        _wires(drawing, view, box, box_colour(number), line // 2, behind=True)
    step = -(-len(xyz) // _MOST)
    shown = slice(None, None, step)
    rgb = _rgb(xyz[shown], None if colours is None else colours[shown], extent)
    _paint(picture, view(xyz[shown]), rgb * _lit(np.asarray(xyz[shown], dtype=np.float64))[:, None])
    drawing = ImageDraw.Draw(picture)
    for number, box in enumerate(boxes, 1):
        _wires(drawing, view, box, box_colour(number), line, behind=False)
    final = round(view.size[0] / _FINER), round(view.size[1] / _FINER)
    picture = picture.resize(final, Image.Resampling.LANCZOS)
    _numbers(ImageDraw.Draw(picture), view, boxes, ImageFont.load_default(size=max(12, size // 32)), final)
    return picture


def _corner(box: Box, face: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(box[3 * high + axis] for axis, high in enumerate(face))


def _floor(drawing: Any, view: _View, extent: Box, line: int) -> None:
    """The box around everything: its floor and the two walls behind."""
    for edge in _EDGES:
        on_floor = all(face[2] == 0 for face in edge)
        if on_floor or _HIDDEN in edge:
            _edge(drawing, view, extent, edge, _FRAME, line)


def _wires(drawing: Any, view: _View, box: Box, colour: str, line: int, behind: bool) -> None:
    for edge in _EDGES:
        if (_HIDDEN in edge) == behind:
            if not behind:
                _edge(drawing, view, box, edge, "black", line + _FINER)
            _edge(drawing, view, box, edge, colour, line)


def _edge(drawing: Any, view: _View, box: Box, edge: Sequence[tuple[int, ...]], colour: str, line: int) -> None:
    x, y, _ = view(np.array([_corner(box, face) for face in edge]))
    drawing.line([(x[0], y[0]), (x[1], y[1])], fill=colour, width=line)


def _numbers(drawing: Any, view: _View, boxes: Sequence[Box], font: Any, size: tuple[int, int]) -> None:
    """Number every box at its upper left corner in front, where it hides no other number."""
    taken: list[Box] = []
    for number, box in enumerate(boxes, 1):
        x, y, _ = view(np.array([_corner(box, face) for face in _FACES])) / _FINER
        corner = _FACES.index((0, 0, 1))
        outline = (float(x[corner]), float(y[corner]), float(x.max()), float(y.max()))
        taken.append(label(drawing, str(number), outline, box_colour(number), font, size, taken))


def _rgb(xyz: Numbers, colours: Numbers | None, extent: Box) -> Numbers:
    """Colours 0 to 255, [N, 3]; by height where points have none."""
    if colours is not None:
        return np.clip(colours, 0, 1) * 255
    height = (xyz[:, 2] - extent[2]) / (extent[5] - extent[2])
    steps = np.linspace(0, 1, len(_HEIGHTS))
    return np.stack([np.interp(height, steps, [rgb[i] for rgb in _HEIGHTS]) for i in range(3)], axis=1)


def _paint(picture: Image, seen: Numbers, rgb: Numbers) -> None:
    """Paint points as discs, the nearest on top."""
    from PIL import Image

    width, height = picture.size
    radius = _radius(seen, width, height)
    order = np.argsort(-seen[2], kind="stable")
    columns, rows = (np.rint(seen[axis][order]).astype(np.int64) for axis in (0, 1))
    reach = range(-radius, radius + 1)
    disc = [(x, y) for x in reach for y in reach if x * x + y * y <= (radius + 0.3) ** 2]
    canvas = np.pad(np.asarray(picture), ((radius, radius), (radius, radius), (0, 0)))
    # A point behind comes before one in front of it, and of several on one pixel the last one stays.
    flat = (np.clip(rows, 0, height - 1) + radius) * canvas.shape[1] + np.clip(columns, 0, width - 1) + radius
    shifts = np.array([y * canvas.shape[1] + x for x, y in disc])
    colours = np.rint(rgb[order]).astype(np.uint8)
    canvas.reshape(-1, 3)[(flat[:, None] + shifts).reshape(-1)] = np.repeat(colours, len(disc), axis=0)
    picture.paste(Image.fromarray(canvas[radius : radius + height, radius : radius + width]))


def _radius(seen: Numbers, width: int, height: int) -> int:
    """Pixels of a point's disc, so that neighbours on a surface nearly meet."""
    cell = max(4, min(width, height) // 40)
    used = len(np.unique((seen[1] // cell).astype(np.int64) * 10_000 + (seen[0] // cell).astype(np.int64)))
    return int(np.clip(math.sqrt(used * cell**2 / seen.shape[1]) * 1.1, 1, max(_FINER, min(width, height) / 45)))


def _lit(xyz: Numbers) -> Numbers:
    """How light every point is, [N]: by how its surroundings face the lamp."""
    low = xyz.min(axis=0)
    side = float((xyz.max(axis=0) - low).max()) or 1.0
    cells = 16.0
    for _ in range(2):  # some points to a cell: on a surface their number grows with the square of the grid
        place = np.minimum((xyz - low) * (cells / side), 1e6).astype(np.int64)
        used, owner = np.unique((place[:, 0] << 40) + (place[:, 1] << 20) + place[:, 2], return_inverse=True)
        cells *= min(16.0, max(0.1, math.sqrt(len(xyz) / (_TO_A_CELL * len(used)))))
    count = np.bincount(owner).astype(np.float64)
    centred = xyz - np.stack([np.bincount(owner, xyz[:, i]) / count for i in range(3)], axis=1)[owner]
    spread = np.empty((len(used), 3, 3))
    for i, j in itertools.product(range(3), repeat=2):
        spread[:, i, j] = np.bincount(owner, centred[:, i] * centred[:, j])
    normals = np.linalg.eigh(spread)[1][:, :, 0]
    normals *= np.where(normals @ _EYE < 0, -1, 1)[:, None]
    light = np.where(count > 3, np.clip(normals @ _LAMP, 0, 1), 0.7)
    lit: Numbers = (_AMBIENT + (1 - _AMBIENT) * light)[owner]
    return lit
