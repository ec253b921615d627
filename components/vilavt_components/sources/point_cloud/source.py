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

from vilavt_components.sources.box_schema import along, box_array, edges_of, keys_of
from vilavt_components.sources.point_cloud import rendering as drawing
from vilavt_components.sources.point_cloud.columns import Columns
from vilavt_components.sources.point_cloud.files import Column, Feature, Points, read_file, split, to_points, write_ply
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.vision.boxes import BoxError, read_box, shown, write_bbox

if TYPE_CHECKING:
    from PIL.Image import Image

_IN_MEMORY = "the point cloud in memory"
_FLAT = 0.01
"""Least side of the extent, as a share of the longest: a plane has no volume to cut boxes from."""
_BLUR = 1e-3
"""Most that 32-bit numbers may be coarse, as a share of the longest side."""


@dataclass(frozen=True)
class PointCloudConfig:
    """Settings of source `point_cloud`."""

    features: list[Feature] = setting(
        help="what the encoder gets of a point beside x, y, z, in this order: colour, normal",
        factory=lambda: ["colour"],
    )
    columns: list[Column] | None = setting(
        None,
        help="columns behind x, y, z where a file does not name them (npy, xyz, txt): colour, normal (3 each), ignored "
        "(1); null: by their number, 3 a colour, 6 a colour and a normal",
    )
    invalid: Literal["refuse", "drop"] = setting("refuse", help="what is done with points that are not finite")
    max_points: int = setting(20_000_000, help="most points a cloud may have", minimum=2)

    def __post_init__(self) -> None:
        for key, names in (("features", self.features), ("columns", self.columns or [])):
            twice = next((name for name in ("colour", "normal") if list(names).count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key} names {twice} twice; name it once.")


@sources.register("point_cloud", PointCloudConfig)
class PointCloudSource(Source):
    """Points: a path (npy, xyz, OFF, PLY) or an array [N, columns]. Boxes are (x0, y0, z0, x1, y1, z1), faces included.

    z is up in pictures.
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
        self._extent = _extent(points, name)

    @property
    def name(self) -> str:
        """The path as it was given, or a word for a cloud in memory."""
        return self._name

    @classmethod
    def tiny(cls) -> PointCloudConfig:
        """Return settings that take small clouds only."""
        return PointCloudConfig(max_points=100_000)

    @classmethod
    def example(cls) -> Any:
        """Points with colours, spread over a box."""
        return np.random.default_rng(0).random((500, 6), dtype=np.float32) * np.array([2, 1, 1, 1, 1, 1], np.float32)

    @classmethod
    def channels(cls, config: PointCloudConfig) -> int:
        """Return three coordinates and three numbers for every feature."""
        return 3 + 3 * len(config.features)

    @classmethod
    def open(cls, original: Any, config: PointCloudConfig) -> PointCloudSource:
        """Open a path, or an array [N, columns] of numbers; raises InputError naming the file and line or byte.

        Colours become 0 to 1, from bytes or from 0 to 255; all numbers become 32 bit.
        """
        if isinstance(original, np.ndarray):
            name, given = _IN_MEMORY, _in_memory(original, config)
        elif isinstance(original, str | os.PathLike):
            path = Path(os.fspath(original))
            name, given = str(path), read_file(path, config.columns, config.max_points)
        else:
            raise InputError(
                f"a point cloud must be a path or an array [points, columns], not {type(original).__name__}."
            )
        return cls(to_points(given, config.features, config.invalid == "drop", name), config.features, name)

    @property
    def extent(self) -> Box:
        """The box around all points, a little larger where they lie in a plane or on a line."""
        return self._extent

    def read_box(self, value: Mapping[str, Any], within: Box, steps: int | tuple[int, ...]) -> Box:
        """Read {"bbox_3d": [x1, y1, z1, x2, y2, z2]} inside the region; raises BoxError, also where no points are."""
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, z1, x2, y2, z2] is missing.')
        for key in value:
            if key != self.box_key:
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of a point cloud; leave it out.')
        box = read_box(value[self.box_key], within, steps, self.box_key)
        if not len(self._inside(box)):
            raise BoxError(
                f"{self.box_key} {shown(value[self.box_key])} holds no points; choose a box that holds some."
            )
        return box

    def box_schema(self, within: Box, steps: int | tuple[int, ...], begun: tuple[int, ...] = ()) -> Mapping[str, Any]:
        """JSON schema of {"bbox_3d": [x1, y1, z1, x2, y2, z2]}, a box that holds points."""
        units = along(steps, 3)
        following = self._following(within, units, begun) if len(begun) < 6 else range(0)
        return keys_of({self.box_key: box_array(begun, following, units, self.box_key)})

    def _following(self, within: Box, units: tuple[int, ...], begun: tuple[int, ...]) -> range:
        """What the next number of a box may be, so that points are left that it can hold."""
        edges = edges_of(within)

        def at(number: int, axis: int) -> float:
            return edges[axis](number / units[axis])

        axis, known = len(begun) % 3, [at(number, place % 3) for place, number in enumerate(begun)]
        left = self.points[self._inside((*known, *within[len(known) :])), axis]
        if not len(left):
            return range(0)
        if len(begun) < 3:
            starts, farthest = range(units[axis]), left.max()
            return starts[: bisect_left(starts, True, key=lambda number: bool(_up(at(number, axis)) > farthest))]
        ends, nearest = range(begun[axis] + 1, units[axis] + 1), left.min()
        return ends[bisect_left(ends, True, key=lambda number: bool(_down(at(number, axis)) >= nearest)) :]

    def write_box(self, box: Box, within: Box, steps: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_3d": [x1, y1, z1, x2, y2, z2]}, rounded outward to whole steps of `within`."""
        return {self.box_key: write_bbox(box, within, steps)}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """All original points in `box`; data float32 [N, 3 + F]. Raises BoxError where there are none."""
        inside = self._inside(box)
        if not len(inside):
            raise BoxError(f"the box {shown(box)} of {self.name} holds no points; choose a box that holds some.")
        return Crop(self.points[inside], self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw the cloud from above its front, the boxes as numbered frames; 640 pixels where `size` is None."""
        return drawing.draw(self.points[:, :3], self._colours(self.points), self._extent, boxes, size or 640)

    def picture(self, data: Any, size: int) -> Image:
        """Draw what a crop holds, `data` [N, 3 + F], from where `draw` looks too."""
        return drawing.draw(data[:, :3], self._colours(data), _extent(data, self.name, alone=True), [], size)

    def save(self, path: Path) -> None:
        """Write all points with their features as binary PLY; colours become bytes."""
        xyz, start, found = self.points[:, :3], 3, dict[str, Points]()
        for feature in self.features:
            found[feature] = self.points[:, start : start + 3]
            start += 3
        write_ply(path, xyz, found.get("colour"), found.get("normal"))

    def _colours(self, points: Points) -> Points | None:
        if "colour" not in self.features:
            return None
        start = 3 + 3 * self.features.index("colour")
        return points[:, start : start + 3]

    def _inside(self, box: Box) -> NDArray[np.int64]:
        """Indices of the points in a box, in their order; one axis after another, so that each has fewer to look at."""
        inside = np.arange(len(self.points))
        for axis in range(3):
            along = self.points[inside, axis]
            inside = inside[(along >= _up(box[axis])) & (along <= _down(box[3 + axis]))]
        return inside


def _in_memory(array: NDArray[Any], config: PointCloudConfig) -> Columns:
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(f"a point cloud must be numbers [points, columns], not {array.dtype} {list(array.shape)}.")
    if len(array) > config.max_points:
        raise InputError(
            f"{_IN_MEMORY} has {len(array):,} points and at most {config.max_points:,} are taken; thin it out or raise "
            "model.source.max_points."
        )
    return Columns(*split(array, config.columns, _IN_MEMORY), lambda index: f"point {index}")


def _extent(points: Points, name: str, alone: bool = False) -> Box:
    """The box around points; raises InputError for none, or (unless `alone`) for none that differ."""
    if not len(points):
        raise InputError(f"{name} has no points; give another cloud.")
    axes = np.ascontiguousarray(points[:, :3].T, dtype=np.float64)
    low, high = axes.min(axis=1), axes.max(axis=1)
    longest = float((high - low).max())
    if not alone:
        _check_extent(low, high, longest, len(points), name)
    more = np.maximum(0, (longest or 1.0) * _FLAT - (high - low)) / 2
    return (*(low - more).tolist(), *(high + more).tolist())


def _check_extent(low: Any, high: Any, longest: float, count: int, name: str) -> None:
    if longest == 0:
        what = "one point" if count == 1 else f"{count:,} points, all in one place"
        raise InputError(f"{name} has {what}; a cloud needs two places at least, so get it again.")
    farthest = float(max(abs(low).max(), abs(high).max()))
    if np.spacing(np.float32(farthest)) > _BLUR * longest:
        raise InputError(
            f"{name} lies {farthest:g} from the origin and is {longest:g} long, so that 32-bit numbers blur it; "
            "subtract its middle from its points."
        )


def _up(value: float) -> np.float32:
    """The least 32-bit number that is not below `value`, so that comparing with 32-bit points is exact."""
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return np.nextafter(near, np.float32(np.inf)) if float(near) < value else near


def _down(value: float) -> np.float32:
    return -_up(-value)
