"""Pictures of a cloud from a fixed direction: near points cover far ones, boxes are wire frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.image import box_colour, draw_label
from vilavt_toolkit.contracts import Box

if TYPE_CHECKING:
    from PIL.Image import Image

Numbers = NDArray[np.floating[Any]]

_AZIMUTH, _ELEVATION = math.radians(-62), math.radians(28)
"""The direction to the viewer: x goes to the right, y away, z up."""
_MARGIN = 0.04
_SUPERSAMPLING = 2
"""Pictures are drawn this many times larger and reduced, which smooths edges."""
_MAX_POINTS = 400_000
"""Most points that are drawn; a larger cloud is thinned out."""
_POINTS_PER_CELL = 24
"""Points that share one surface normal for their shading, on average."""
_AMBIENT = 0.55
"""Brightness of a surface that is turned away from the lamp, of 1."""
_BACKGROUND, _FRAME = (228, 232, 239), "#a4aab6"
_HEIGHTS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours from low to high for points without colours of their own."""
_EYE = np.array((math.cos(_AZIMUTH), math.sin(_AZIMUTH), math.sin(_ELEVATION)))
_LAMP = np.array((-0.15, -0.5, 0.85))
_CORNERS = tuple(itertools.product((0, 1), repeat=3))
_EDGES = tuple(
    (a, b) for a, b in itertools.combinations(_CORNERS, 2) if sum(i != j for i, j in zip(a, b, strict=True)) == 1
)
_FAR_CORNER = (0, 1, 0)
"""The corner of a box that is farthest away; the edges that meet there lie behind the box's points."""


class _Projection:
    """An orthographic projection that fits a box into a picture whose longer side is `size` pixels."""

    def __init__(self, extent: Box, size: int) -> None:
        cos, sin = math.cos(_AZIMUTH), math.sin(_AZIMUTH)
        up, along = math.cos(_ELEVATION), math.sin(_ELEVATION)
        # Rows are the picture's axes: to the right, down, and away from the viewer.
        self._axes = np.array([(-sin, cos, 0), (along * cos, along * sin, -up), (-up * cos, -up * sin, -along)])
        corners = self._axes @ np.array([_corner_point(extent, face) for face in _CORNERS]).T
        low, high = corners.min(axis=1), corners.max(axis=1)
        room = size * (1 - 2 * _MARGIN)
        self.scale = room / max(high[0] - low[0], high[1] - low[1])
        sides = [max(size // 4, round((high[i] - low[i]) * self.scale + 2 * _MARGIN * size)) for i in (0, 1)]
        sides[int((high - low)[:2].argmax())] = size
        self.size = sides[0], sides[1]
        self._offset = np.array([*self.size, 0]) / 2 - self.scale * (low + high) / 2

    def __call__(self, xyz: Numbers) -> Numbers:
        """Project points [N, 3]; returns pixels to the right, down, and away from the viewer, [3, N]."""
        seen: Numbers = self.scale * (self._axes @ np.asarray(xyz, dtype=np.float64).T) + self._offset[:, None]
        return seen


def draw_cloud(xyz: Numbers, colours: Numbers | None, extent: Box, boxes: Sequence[Box], size: int) -> Image:
    """Draw points [N, 3] and numbered boxes on a picture whose longer side is `size` pixels.

    `colours` [N, 3] are from 0 to 1; None: the height decides.
    """
    from PIL import Image, ImageDraw, ImageFont

    view = _Projection(extent, size * _SUPERSAMPLING)
    picture = Image.new("RGB", view.size, _BACKGROUND)
    drawing = ImageDraw.Draw(picture)
    line = max(2, size // 200) * _SUPERSAMPLING
    _draw_backdrop(drawing, view, extent, max(1, line // 3))
    # Edges behind a box's points are drawn before the points, which then cover them, all others after.
    for number, box in enumerate(boxes, 1):
        _draw_wire_frame(drawing, view, box, box_colour(number), line // 2, behind=True)
    step = -(-len(xyz) // _MAX_POINTS)
    shown = slice(None, None, step)
    rgb = _point_rgb(xyz[shown], None if colours is None else colours[shown], extent)
    _paint_points(picture, view(xyz[shown]), rgb * _shade_points(np.asarray(xyz[shown], dtype=np.float64))[:, None])
    drawing = ImageDraw.Draw(picture)
    for number, box in enumerate(boxes, 1):
        _draw_wire_frame(drawing, view, box, box_colour(number), line, behind=False)
    final = round(view.size[0] / _SUPERSAMPLING), round(view.size[1] / _SUPERSAMPLING)
    picture = picture.resize(final, Image.Resampling.LANCZOS)
    _draw_numbers(ImageDraw.Draw(picture), view, boxes, ImageFont.load_default(size=max(12, size // 32)), final)
    return picture


def _corner_point(box: Box, face: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(box[3 * high + axis] for axis, high in enumerate(face))


def _draw_backdrop(drawing: Any, view: _Projection, extent: Box, line: int) -> None:
    """Draw the floor and the two back walls of the box around all points."""
    for edge in _EDGES:
        on_floor = all(face[2] == 0 for face in edge)
        if on_floor or _FAR_CORNER in edge:
            _draw_edge(drawing, view, extent, edge, _FRAME, line)


def _draw_wire_frame(drawing: Any, view: _Projection, box: Box, colour: str, line: int, behind: bool) -> None:
    for edge in _EDGES:
        if (_FAR_CORNER in edge) == behind:
            # A wider black line below keeps an edge visible before points of its colour.
            if not behind:
                _draw_edge(drawing, view, box, edge, "black", line + _SUPERSAMPLING)
            _draw_edge(drawing, view, box, edge, colour, line)


def _draw_edge(
    drawing: Any, view: _Projection, box: Box, edge: Sequence[tuple[int, ...]], colour: str, line: int
) -> None:
    x, y, _ = view(np.array([_corner_point(box, face) for face in edge]))
    drawing.line([(x[0], y[0]), (x[1], y[1])], fill=colour, width=line)


def _draw_numbers(drawing: Any, view: _Projection, boxes: Sequence[Box], font: Any, size: tuple[int, int]) -> None:
    """Write every box's number at its upper left front corner, or where it covers no other number."""
    taken: list[Box] = []
    for number, box in enumerate(boxes, 1):
        x, y, _ = view(np.array([_corner_point(box, face) for face in _CORNERS])) / _SUPERSAMPLING
        corner = _CORNERS.index((0, 0, 1))
        outline = (float(x[corner]), float(y[corner]), float(x.max()), float(y.max()))
        taken.append(draw_label(drawing, str(number), outline, box_colour(number), font, size, taken))


def _point_rgb(xyz: Numbers, colours: Numbers | None, extent: Box) -> Numbers:
    """Return colours from 0 to 255, [N, 3]; by height for points without colours."""
    if colours is not None:
        return np.clip(colours, 0, 1) * 255
    height = (xyz[:, 2] - extent[2]) / (extent[5] - extent[2])
    steps = np.linspace(0, 1, len(_HEIGHTS))
    return np.stack([np.interp(height, steps, [rgb[i] for rgb in _HEIGHTS]) for i in range(3)], axis=1)


def _paint_points(picture: Image, seen: Numbers, rgb: Numbers) -> None:
    """Paint points as discs, the nearest on top."""
    from PIL import Image

    width, height = picture.size
    radius = _disc_radius(seen, width, height)
    order = np.argsort(-seen[2], kind="stable")
    columns, rows = (np.rint(seen[axis][order]).astype(np.int64) for axis in (0, 1))
    reach = range(-radius, radius + 1)
    disc = [(x, y) for x in reach for y in reach if x * x + y * y <= (radius + 0.3) ** 2]
    canvas = np.pad(np.asarray(picture), ((radius, radius), (radius, radius), (0, 0)))
    # Points come from far to near, and where several write one pixel, NumPy keeps the last one.
    flat = (np.clip(rows, 0, height - 1) + radius) * canvas.shape[1] + np.clip(columns, 0, width - 1) + radius
    shifts = np.array([y * canvas.shape[1] + x for x, y in disc])
    colours = np.rint(rgb[order]).astype(np.uint8)
    canvas.reshape(-1, 3)[(flat[:, None] + shifts).reshape(-1)] = np.repeat(colours, len(disc), axis=0)
    picture.paste(Image.fromarray(canvas[radius : radius + height, radius : radius + width]))


def _disc_radius(seen: Numbers, width: int, height: int) -> int:
    """Return the pixels of a point's disc so that neighbours on a surface nearly touch."""
    # The cells that hold a point estimate the area that the cloud covers, which its points share.
    cell = max(4, min(width, height) // 40)
    used = len(np.unique((seen[1] // cell).astype(np.int64) * 10_000 + (seen[0] // cell).astype(np.int64)))
    return int(
        np.clip(math.sqrt(used * cell**2 / seen.shape[1]) * 1.1, 1, max(_SUPERSAMPLING, min(width, height) / 45))
    )


def _shade_points(xyz: Numbers) -> Numbers:
    """Return the brightness of every point, [N], by how the surface around it faces the lamp."""
    low = xyz.min(axis=0)
    side = float((xyz.max(axis=0) - low).max()) or 1.0
    cells = 16.0
    # Twice, to get a grid with some _POINTS_PER_CELL in a cell: on a surface, the number of points in a cell falls
    # with the square of the cells along a side, and the first pass measures how many cells the surface fills.
    for _ in range(2):
        place = np.minimum((xyz - low) * (cells / side), 1e6).astype(np.int64)
        used, owner = np.unique((place[:, 0] << 40) + (place[:, 1] << 20) + place[:, 2], return_inverse=True)
        cells *= min(16.0, max(0.1, math.sqrt(len(xyz) / (_POINTS_PER_CELL * len(used)))))
    count = np.bincount(owner).astype(np.float64)
    centred = xyz - np.stack([np.bincount(owner, xyz[:, i]) / count for i in range(3)], axis=1)[owner]
    # The normal of a cell is the direction in which its points vary least: the smallest eigenvector of their spread.
    spread = np.empty((len(used), 3, 3))
    for i, j in itertools.product(range(3), repeat=2):
        spread[:, i, j] = np.bincount(owner, centred[:, i] * centred[:, j])
    normals = np.linalg.eigh(spread)[1][:, :, 0]
    normals *= np.where(normals @ _EYE < 0, -1, 1)[:, None]
    light = np.where(count > 3, np.clip(normals @ _LAMP, 0, 1), 0.7)
    lit: Numbers = (_AMBIENT + (1 - _AMBIENT) * light)[owner]
    return lit
