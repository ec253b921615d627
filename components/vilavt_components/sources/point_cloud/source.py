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
from vilavt_components.sources.point_cloud.columns import Numbers, PointColumns
from vilavt_components.sources.point_cloud.files import (
    Cloud,
    Column,
    Feature,
    Points,
    columns_from_array,
    read_file,
    to_cloud,
    write_ply,
)
from vilavt_components.sources.point_cloud.rendering import draw_cloud
from vilavt_components.sources.regular_file import to_path
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

    def __init__(self, cloud: Cloud, features: Sequence[Feature] = (), name: str = _IN_MEMORY) -> None:
        self._cloud, self.features = cloud, tuple(features)
        self._name, self._extent = name, _bounding_box(cloud.xyz, name)

    @property
    def points(self) -> Points:
        """All points, float32 [N, 3 + F]; from the middle of the cloud on if 32 bits do not hold their coordinates."""
        return self._cloud.points

    @property
    def xyz(self) -> Numbers:
        """The coordinates of all points as in the file, [N, 3]."""
        return self._cloud.xyz

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

        Colours become 0 to 1, and all numbers become float32. Coordinates that lose by it are kept in float64.
        """
        if isinstance(original, np.ndarray):
            name = _IN_MEMORY
        elif isinstance(original, str | os.PathLike):
            name = str(to_path(original))
        else:
            raise InputError(
                f"a point cloud must be a path or an array [points, columns], not {type(original).__name__}."
            )
        try:
            given = (
                _columns_from_array(original, config)
                if isinstance(original, np.ndarray)
                else read_file(Path(name), config.columns, config.max_points)
            )
            # Files and arrays share the last steps, so the same checks hold for both.
            return cls(to_cloud(given, config.features, config.invalid == "drop", name), config.features, name)
        except MemoryError as error:
            raise InputError(
                f"{name} needs more memory than is free. Thin it out, or lower model.source.max_points to refuse it."
            ) from error

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
        candidates = self.xyz[self._points_inside((*known, *within[len(known) :])), axis]
        if not len(candidates):
            return range(0)
        if len(numbers) < 3:
            # A lower face may reach up to the last candidate, an upper face below must reach the first one.
            starts, last = range(units[axis]), candidates.max()

            def is_above(number: int) -> bool:
                return bool(self._lowest(coordinate_of(number, axis)) > last)

            return starts[: bisect_left(starts, True, key=is_above)]
        ends, first = range(numbers[axis] + 1, units[axis] + 1), candidates.min()

        def reaches(number: int) -> bool:
            return bool(-self._lowest(-coordinate_of(number, axis)) >= first)

        return ends[bisect_left(ends, True, key=reaches) :]

    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_3d": [x1, y1, z1, x2, y2, z2]}, rounded outward to whole units of `within`."""
        return {self.box_key: write_bbox(box, within, box_units)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut out all original points in `box`; data float32 [N, 3 + F]. Raises BoxError if there are none.

        Coordinates are those of the file, or from the middle of the box on if 32 bits do not hold them.
        """
        inside = self._points_inside(box)
        if not len(inside):
            raise BoxError(
                f"the box {shorten_value(box)} of {self.name} holds no points; choose a box that holds some."
            )
        data = self.points[inside]
        if self._cloud.exact is not None:
            # Anew for each box, so that the error is small beside the side of a deep zoom, and not of the cloud.
            middle = (np.array(box[:3]) + np.array(box[3:])) / 2
            data[:, :3] = self._cloud.exact[inside] - middle
        return Crop(data, self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw the cloud from above its front, the boxes as numbered wire frames; 640 pixels if `size` is None."""
        # All from the middle of the cloud on, as its points are.
        extent, *others = (tuple(np.subtract(box, 2 * self._cloud.offset).tolist()) for box in (self._extent, *boxes))
        return draw_cloud(self.points[:, :3], self._point_colours(self.points), extent, others, size or 640)

    def draw_crop(self, data: Any, size: int) -> Image:
        """Draw the points of a crop, `data` [N, 3 + F], from the same direction as `draw`."""
        return draw_cloud(
            data[:, :3], self._point_colours(data), _bounding_box(data, self.name, allow_single_place=True), [], size
        )

    def save(self, path: Path) -> None:
        """Write all points with their features as binary PLY; colours become bytes."""
        start, found = 3, dict[str, Points]()
        for feature in self.features:
            found[feature] = self.points[:, start : start + 3]
            start += 3
        write_ply(path, self.xyz, found.get("colour"), found.get("normal"))

    def _point_colours(self, points: Points) -> Points | None:
        if "colour" not in self.features:
            return None
        start = 3 + 3 * self.features.index("colour")
        return points[:, start : start + 3]

    def _lowest(self, value: float) -> float | np.float32:
        """Return the smallest number of the coordinates' type that is not below `value`."""
        return value if self._cloud.exact is not None else _round_up_to_float32(value)

    def _points_inside(self, box: Box) -> NDArray[np.int64]:
        """Return the indices of the points in a box, in their order."""
        # One axis after another, so that each has fewer points to compare.
        inside = np.arange(len(self.points))
        for axis in range(3):
            values = self.xyz[inside, axis]
            low, high = self._lowest(box[axis]), -self._lowest(-box[3 + axis])
            inside = inside[(values >= low) & (values <= high)]
        return inside


def _columns_from_array(array: NDArray[Any], config: PointCloudSourceConfig) -> PointColumns:
    if array.ndim and len(array) > config.max_points:
        raise InputError(
            f"{_IN_MEMORY} has {len(array):,} points and at most {config.max_points:,} are taken. Thin it out or raise "
            "model.source.max_points."
        )
    return columns_from_array(array, config.columns, _IN_MEMORY)


def _bounding_box(points: Numbers, name: str, allow_single_place: bool = False) -> Box:
    """Return the box around points; raises InputError for no points, or for points that no box can divide.

    With `allow_single_place` the points may all be one, as in a crop.
    """
    if not len(points):
        raise InputError(f"{name} has no points. Give another cloud.")
    axes = np.ascontiguousarray(points[:, :3].T, dtype=np.float64)
    low, high = axes.min(axis=1), axes.max(axis=1)
    longest = float((high - low).max())
    if not longest and not allow_single_place:
        what = "one point" if len(points) == 1 else f"{len(points):,} points, all in one place"
        raise InputError(f"{name} has {what}. A cloud needs at least two places. Get it again.")
    # A plane or a line gets some thickness, or all its boxes would be empty.
    more = np.maximum(0, (longest or 1.0) * _MIN_SIDE_SHARE - (high - low)) / 2
    return (*(low - more).tolist(), *(high + more).tolist())


def _round_up_to_float32(value: float) -> np.float32:
    """Return the smallest float32 that is not below `value`."""
    # NumPy would round `value` to float32 before it compares it with points, and move a face past a point.
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return np.nextafter(near, np.float32(np.inf)) if float(near) < value else near
