"""Source `point_cloud`: points with colours and normals, from a file or in memory."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.box_schema import box_array_schema, coordinate_functions, object_schema
from vilavt_components.sources.point_cloud.columns import PointColumns
from vilavt_components.sources.point_cloud.files import (
    Column,
    Feature,
    Points,
    read_file,
    split_columns,
    to_points,
    write_ply,
)
from vilavt_components.sources.point_cloud.rendering import draw_cloud
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.vision.boxes import BoxError, read_box, shorten_value, units_per_axis, write_bbox

if TYPE_CHECKING:
    from PIL.Image import Image

_IN_MEMORY = "the point cloud in memory"
_MIN_SIDE_SHARE = 0.01
"""Shortest side of the extent as a share of the longest: a plane has no volume to cut boxes from."""
_MAX_ROUNDING_SHARE = 1e-3
"""Largest step between neighbouring float32 coordinates, as a share of the longest side."""


@dataclass(frozen=True)
class PointCloudSourceConfig:
    """Settings of source `point_cloud`."""

    features: list[Feature] = setting(
        help="features that the encoder gets of a point after x, y, z, in this order: colour, normal",
        factory=lambda: ["colour"],
    )
    columns: list[Column] | None = setting(
        None,
        help="columns after x, y, z if a file does not name them (npy, xyz, txt): colour, normal (3 each), ignored "
        "(1), or null to go by their number: 3 a colour, 6 a colour and a normal",
    )
    invalid: Literal["refuse", "drop"] = setting(
        "refuse", help="what to do with points that have NaN or infinite numbers"
    )
    max_points: int = setting(20_000_000, help="most points a cloud may have", minimum=2)

    def __post_init__(self) -> None:
        for key, names in (("features", self.features), ("columns", self.columns or [])):
            twice = next((name for name in ("colour", "normal") if list(names).count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key} names {twice} twice. Name it once.")


@sources.register("point_cloud", PointCloudSourceConfig)
class PointCloudSource(Source):
    """A point cloud from a path (npy, xyz, txt, csv, pts, OFF, PLY) or an array [N, columns].

    Boxes are (x1, y1, z1, x2, y2, z2) in the file's coordinates and hold the points on their faces too. z points up
    in pictures.
    """

    modality: ClassVar[str] = "point_cloud"
    box_key: ClassVar[str] = "bbox_3d"
    box_help: ClassVar[tuple[str, str]] = (
        '"bbox_3d": [x1, y1, z1, x2, y2, z2]',
        "boxes are in {steps} steps along each axis.",
    )
    suffix: ClassVar[str] = ".ply"

    def __init__(self, points: Points, features: Sequence[Feature] = (), name: str = _IN_MEMORY) -> None:
        self.points, self.features = points, tuple(features)
        self._name = name
        self._extent = _bounding_box(points, name)

    @property
    def name(self) -> str:
        """The path as it was given, or a word for a cloud in memory."""
        return self._name

    @classmethod
    def tiny(cls) -> PointCloudSourceConfig:
        """Return settings that take small clouds only."""
        return PointCloudSourceConfig(max_points=100_000)

    @classmethod
    def example(cls) -> Any:
        """Return points with colours, spread over a box."""
        return np.random.default_rng(0).random((500, 6), dtype=np.float32) * np.array([2, 1, 1, 1, 1, 1], np.float32)

    @classmethod
    def channels(cls, config: PointCloudSourceConfig) -> int:
        """Return the numbers of a point: three coordinates, and three for every feature."""
        return 3 + 3 * len(config.features)

    @classmethod
    def open(cls, original: Any, config: PointCloudSourceConfig) -> PointCloudSource:
        """Open a path, or an array [N, columns] of numbers; raises InputError naming the file and line or byte.

        Colours become 0 to 1, and all numbers become float32.
        """
        if isinstance(original, np.ndarray):
            name, given = _IN_MEMORY, _columns_from_array(original, config)
        elif isinstance(original, str | os.PathLike):
            path = Path(os.fspath(original))
            name, given = str(path), read_file(path, config.columns, config.max_points)
        else:
            raise InputError(
                f"a point cloud must be a path or an array [points, columns], not {type(original).__name__}."
            )
        # Files and arrays share this last step, so the same checks hold for both.
        return cls(to_points(given, config.features, config.invalid == "drop", name), config.features, name)

    @property
    def extent(self) -> Box:
        """The box around all points, a little larger where they lie in a plane or on a line."""
        return self._extent

    def read_box(self, value: Mapping[str, Any], within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read {"bbox_3d": [x1, y1, z1, x2, y2, z2]} inside `within`; raises BoxError, also for an empty box."""
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, z1, x2, y2, z2] is missing.')
        for key in value:
            if key != self.box_key:
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of a point cloud; leave it out.')
        box = read_box(value[self.box_key], within, box_units, self.box_key)
        # An empty crop has no tokens: the model gets feedback here rather than an error from the encoder.
        if not len(self._points_inside(box)):
            raise BoxError(
                f"{self.box_key} {shorten_value(value[self.box_key])} holds no points; choose a box that holds some."
            )
        return box

    def box_schema(
        self, within: Box, box_units: int | tuple[int, ...], begun: tuple[int, ...] = ()
    ) -> Mapping[str, Any]:
        """Return the JSON schema of {"bbox_3d": [x1, y1, z1, x2, y2, z2]}, a box that holds points."""
        units = units_per_axis(box_units, 3)
        next_range = self._next_number_range(within, units, begun) if len(begun) < 6 else range(0)
        return object_schema({self.box_key: box_array_schema(begun, next_range, units, self.box_key)})

    def _next_number_range(self, within: Box, units: tuple[int, ...], numbers: tuple[int, ...]) -> range:
        """Return the values of the number after `numbers` with which a box can still hold a point."""
        coordinates = coordinate_functions(within)

        def coordinate_of(number: int, axis: int) -> float:
            return coordinates[axis](number / units[axis])

        axis = len(numbers) % 3
        known = [coordinate_of(number, place % 3) for place, number in enumerate(numbers)]
        # The points that the box holds if its remaining faces lie on those of the region.
        candidates = self.points[self._points_inside((*known, *within[len(known) :])), axis]
        if not len(candidates):
            return range(0)
        if len(numbers) < 3:
            # A lower face may reach up to the last candidate, an upper face below must reach the first one.
            starts, last = range(units[axis]), candidates.max()

            def is_above(number: int) -> bool:
                return bool(_round_up_to_float32(coordinate_of(number, axis)) > last)

            return starts[: bisect_left(starts, True, key=is_above)]
        ends, first = range(numbers[axis] + 1, units[axis] + 1), candidates.min()

        def reaches(number: int) -> bool:
            return bool(_round_down_to_float32(coordinate_of(number, axis)) >= first)

        return ends[bisect_left(ends, True, key=reaches) :]

    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_3d": [x1, y1, z1, x2, y2, z2]}, rounded outward to whole units of `within`."""
        return {self.box_key: write_bbox(box, within, box_units)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut out all original points in `box`; data float32 [N, 3 + F]. Raises BoxError if there are none."""
        inside = self._points_inside(box)
        if not len(inside):
            raise BoxError(
                f"the box {shorten_value(box)} of {self.name} holds no points; choose a box that holds some."
            )
        return Crop(self.points[inside], self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw the cloud from above its front, the boxes as numbered wire frames; 640 pixels if `size` is None."""
        return draw_cloud(self.points[:, :3], self._point_colours(self.points), self._extent, boxes, size or 640)

    def draw_crop(self, data: Any, size: int) -> Image:
        """Draw the points of a crop, `data` [N, 3 + F], from the same direction as `draw`."""
        return draw_cloud(
            data[:, :3], self._point_colours(data), _bounding_box(data, self.name, allow_single_place=True), [], size
        )

    def save(self, path: Path) -> None:
        """Write all points with their features as binary PLY; colours become bytes."""
        xyz, start, found = self.points[:, :3], 3, dict[str, Points]()
        for feature in self.features:
            found[feature] = self.points[:, start : start + 3]
            start += 3
        write_ply(path, xyz, found.get("colour"), found.get("normal"))

    def _point_colours(self, points: Points) -> Points | None:
        if "colour" not in self.features:
            return None
        start = 3 + 3 * self.features.index("colour")
        return points[:, start : start + 3]

    def _points_inside(self, box: Box) -> NDArray[np.int64]:
        """Return the indices of the points in a box, in their order."""
        # One axis after another, so that each has fewer points to compare.
        inside = np.arange(len(self.points))
        for axis in range(3):
            values = self.points[inside, axis]
            low, high = _round_up_to_float32(box[axis]), _round_down_to_float32(box[3 + axis])
            inside = inside[(values >= low) & (values <= high)]
        return inside


def _columns_from_array(array: NDArray[Any], config: PointCloudSourceConfig) -> PointColumns:
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(f"a point cloud must be numbers [points, columns], not {array.dtype} {list(array.shape)}.")
    if len(array) > config.max_points:
        raise InputError(
            f"{_IN_MEMORY} has {len(array):,} points and at most {config.max_points:,} are taken. Thin it out or raise "
            "model.source.max_points."
        )
    return PointColumns(*split_columns(array, config.columns, _IN_MEMORY), lambda index: f"point {index}")


def _bounding_box(points: Points, name: str, allow_single_place: bool = False) -> Box:
    """Return the box around points; raises InputError for no points, or for points that no box can divide.

    With `allow_single_place` the points may all be one, as in a crop.
    """
    if not len(points):
        raise InputError(f"{name} has no points. Give another cloud.")
    axes = np.ascontiguousarray(points[:, :3].T, dtype=np.float64)
    low, high = axes.min(axis=1), axes.max(axis=1)
    longest = float((high - low).max())
    if not allow_single_place:
        _check_extent(low, high, longest, len(points), name)
    # A plane or a line gets some thickness, or all its boxes would be empty.
    more = np.maximum(0, (longest or 1.0) * _MIN_SIDE_SHARE - (high - low)) / 2
    return (*(low - more).tolist(), *(high + more).tolist())


def _check_extent(low: Any, high: Any, longest: float, count: int, name: str) -> None:
    """Refuse points in one place, and points so far from the origin that float32 merges them; raises InputError."""
    if longest == 0:
        what = "one point" if count == 1 else f"{count:,} points, all in one place"
        raise InputError(f"{name} has {what}. A cloud needs at least two places. Get it again.")
    farthest = float(max(abs(low).max(), abs(high).max()))
    if np.spacing(np.float32(farthest)) > _MAX_ROUNDING_SHARE * longest:
        raise InputError(
            f"{name} lies {farthest:g} from the origin and is {longest:g} long, so that 32-bit numbers cannot tell its "
            "points apart. Subtract its middle from its points."
        )


def _round_up_to_float32(value: float) -> np.float32:
    """Return the smallest float32 that is not below `value`."""
    # NumPy would round `value` to float32 before it compares it with points, and move a face past a point.
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return np.nextafter(near, np.float32(np.inf)) if float(near) < value else near


def _round_down_to_float32(value: float) -> np.float32:
    """Return the largest float32 that is not above `value`."""
    return -_round_up_to_float32(-value)
