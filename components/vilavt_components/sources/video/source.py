"""Source `video`: a folder of frames, an animated image, a video file, or frames in memory."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vilavt_components.sources.box_schema import along, box_array, edges_of, image_axes, image_range, keys_of
from vilavt_components.sources.image import Pixels
from vilavt_components.sources.video.decoding import FileFrames
from vilavt_components.sources.video.frame_selection import chosen, end_of, nearest, written
from vilavt_components.sources.video.frames import AnimationFrames, ArrayFrames, FolderFrames, Frames, is_picture
from vilavt_components.sources.video.rendering import Tile, strip
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.vision.boxes import BoxError, pixel_box, read_bbox, shown, write_bbox

_FRAMES = 8
"""Frames shown where neither their number nor their rate is set."""
_TICKS = 10**6
"""Parts of a second in which a box names a moment."""
_RECENT = 4
"""Decoded frames that are kept for the next region."""
_LONGEST = 65_535
"""Most units of a second, or of a part of it, that a frame of an animated PNG can last."""


@dataclass(frozen=True)
class VideoConfig:
    """Settings of source `video`."""

    fps: float | None = setting(None, help="frames shown for every second of a video; null: `frames` in all", minimum=0)
    frames: int | None = setting(
        None, help="frames shown at most, spread evenly over the video; null: 8, with fps as many as `pixels` allow",
        minimum=1,
    )  # fmt: skip
    pixels: int = setting(
        6_422_528, help="most pixels of all first views of a video together: frames are made smaller", minimum=1
    )
    frame_pixels: int = setting(
        50_176, help="fewest pixels to which a frame is made smaller; beyond, fewer frames are shown", minimum=1
    )
    folder_fps: float = setting(
        1.0, help="frames a second of what has no clock: a folder, an array in memory", minimum=1e-6
    )
    max_pixels: int = setting(100_000_000, help="most pixels a frame may have when decoded", minimum=1)

    def __post_init__(self) -> None:
        # What is read from a recipe has been checked before; what is built in code has not.
        for part in fields(self):
            value, least = getattr(self, part.name), part.metadata["minimum"]
            if value is not None and not value >= least:
                raise ValueError(f"{part.name} {value} is below the least, {least}; raise it.")
        if self.fps == 0:
            raise ValueError("fps 0 would show nothing; give a rate above 0, or null.")


@sources.register("video", VideoConfig)
class VideoSource(Source):
    """A video: a folder of frames, an animated GIF, PNG or WebP, a file through PyAV, or uint8 [n, h, w, 3].

    Boxes are (frame, x1, y1, x2, y2): the number of a frame, counted from 0, and pixels of it. Frames are decoded
    when they are asked for; what is kept are the first views, made smaller, and the last few frames.
    """

    modality: ClassVar[str] = "image"
    box_key: ClassVar[str] = "bbox_2d"
    time_key: ClassVar[str] = "time"
    box_help: ClassVar[tuple[str, str]] = (
        '"bbox_2d": [x1, y1, x2, y2], "time": 2.5',
        'boxes are in {steps} steps from its left and top edge; "time", in seconds, is for another moment of the same '
        "video, also one that was not shown, and may be left out.",
    )

    def __init__(self, frames: Frames, config: VideoConfig) -> None:
        self._reader = frames
        self._recent: OrderedDict[int, Pixels] = OrderedDict()
        self._views: dict[int, Pixels] = {}
        self.times = frames.times
        """Seconds from the first frame to every frame."""
        (first,) = frames.read([0])
        self._recent[0] = first
        self.height, self.width = first.shape[:2]
        area = self.width * self.height
        room = max(1, config.pixels // min(config.frame_pixels, area))
        most = config.frames or (_FRAMES if config.fps is None else room)
        self.shown = chosen(self.times, config.fps, min(most, room))
        """The frames of the first views."""
        scale = min(1.0, math.sqrt(config.pixels / len(self.shown) / area))
        self._view_size = max(1, int(self.width * scale)), max(1, int(self.height * scale))

    @classmethod
    def tiny(cls) -> VideoConfig:
        """Return settings that show three frames."""
        return VideoConfig(frames=3, max_pixels=1_000_000)

    @classmethod
    def example(cls) -> Pixels:
        """Five frames in memory."""
        return np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)

    @classmethod
    def open(cls, original: Any, config: VideoConfig) -> VideoSource:
        """Open a folder, a file, or frames uint8 [n, h, w, 3]; raises InputError naming the file.

        A file that ends early has the frames that can be read, which is said in a warning. Turned videos are turned
        upright; pixels are taken as square.
        """
        if isinstance(original, np.ndarray):
            return cls(ArrayFrames(original, config.folder_fps, config.max_pixels), config)
        if not isinstance(original, str | os.PathLike):
            raise InputError(
                f"a video must be a path or an array of uint8 [n, h, w, 3], not {type(original).__name__}."
            )
        path = Path(os.fspath(original))
        try:
            return cls(_frames(path, config), config)
        except PermissionError as error:
            raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from error
        except (Image.DecompressionBombError, OSError) as error:
            raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error

    @property
    def name(self) -> str:
        """The path as it was given, or words for a video in memory."""
        return self._reader.name

    @property
    def extent(self) -> Box:
        """The whole of the first frame that is shown."""
        return self._whole(self.shown[0])

    def overviews(self) -> Sequence[Box]:
        """The whole of every frame that is shown first."""
        return [self._whole(frame) for frame in self.shown]

    def label(self, box: Box) -> str:
        """The time of a region, in seconds from the first frame, as "time" takes it: "2.5 s"."""
        return f"{written(self.times, int(box[0]))} s"

    def read_box(self, value: Mapping[str, Any], within: Box, steps: int | tuple[int, ...]) -> Box:
        """Read {"bbox_2d": [x1, y1, x2, y2], "time": 2.5}; without a time, the frame is that of `within`.

        Of all frames, also those not shown, the one nearest to the time is meant. Raises BoxError.
        """
        for key in value:
            if key not in (self.box_key, self.time_key):
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of a video; leave it out.')
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, x2, y2] is missing.')
        sides = read_bbox(value[self.box_key], within[1:], steps, self.box_key)
        frame = self._frame_at(value[self.time_key]) if self.time_key in value else within[0]
        return float(frame), *sides

    def _frame_at(self, moment: Any) -> int:
        if isinstance(moment, bool) or not isinstance(moment, int | float):
            raise BoxError(f'"{self.time_key}" must be a number of seconds, not {shown(moment)}.')
        if not 0 <= moment <= self._end:
            last = written(self.times, len(self.times) - 1)
            raise BoxError(
                f'"{self.time_key}" {shown(moment)} is out of range: the video runs from 0 to {last} seconds.'
            )
        return nearest(self.times, moment)

    @property
    def _end(self) -> float:
        """The last moment that a box may name: the last frame lasts a while, and what was written may be rounded."""
        return max(end_of(self.times), float(written(self.times, len(self.times) - 1)))

    def box_schema(self, within: Box, steps: int | tuple[int, ...], begun: tuple[int, ...] = ()) -> Mapping[str, Any]:
        """JSON schema of {"bbox_2d": [x1, y1, x2, y2], "time": 2.5}, the time in any case within the video."""
        units = along(steps, 2)
        axes = image_axes(edges_of(within[1:]), units, (self.width, self.height))
        last = math.floor(self._end * _TICKS) / _TICKS
        time = {"type": "number", "minimum": 0, "maximum": last, "multipleOf": 1 / _TICKS}
        return keys_of({self.box_key: box_array(begun, image_range(axes, begun), units, self.box_key)}, {"time": time})

    def write_box(self, box: Box, within: Box, steps: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_2d": [x1, y1, x2, y2]}, with the "time" of its frame where `within` is of another."""
        if not (float(box[0]).is_integer() and 0 <= box[0] < len(self.times)):
            raise BoxError(f"there is no frame {shown(box[0])}: the video has frames 0 to {len(self.times) - 1}.")
        sides = {self.box_key: write_bbox(box[1:], within[1:], steps)}
        return sides if box[0] == within[0] else {**sides, self.time_key: written(self.times, int(box[0]))}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut `box` out of its frame, data uint8 [h, w, 3]; an overview within its share of the pixel budget."""
        frame = int(box[0])
        if not 0 <= frame < len(self.times):
            raise InputError(f"{self.name} has no frame {frame}; it has frames 0 to {len(self.times) - 1}.")
        if overview and tuple(box) == self._whole(frame):
            return Crop(self._view(frame), self.modality, overview)
        left, upper, right, lower = pixel_box(box[1:], self.width, self.height)
        return Crop(np.ascontiguousarray(self._frame(frame)[upper:lower, left:right]), self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image.Image:
        """Draw the frames that have boxes, or without boxes the first views, in rows of four under their times.

        The longer side is `size` pixels; None: that of the frames side by side, 4096 at most.
        """
        found: dict[int, list[tuple[int, Box]]] = {frame: [] for frame in ([] if boxes else self.shown)}
        for number, box in enumerate(boxes, 1):
            found.setdefault(int(box[0]), []).append((number, box[1:]))
        tiles = [Tile(self.label((frame,)), partial(self._frame, frame), found[frame]) for frame in sorted(found)]
        return strip(tiles, (self.width, self.height), size)

    def save(self, path: Path) -> None:
        """Write the first views into an animated PNG, each shown until the next begins; a video in memory, whole."""
        whole = isinstance(self._reader, ArrayFrames)
        shown, pixels = (range(len(self.times)), self._frame) if whole else (self.shown, self._view)
        ends = [*(self.times[frame] for frame in shown[1:]), end_of(self.times)]
        lasting = [_milliseconds(end - self.times[frame]) for frame, end in zip(shown, ends, strict=True)]
        first, *others = [Image.fromarray(pixels(frame)) for frame in shown]
        # Frames alike would become one, were they not laid over each other by turns; without transparency it looks so.
        turns = [number % 2 for number in range(len(shown))]
        first.save(path, format="PNG", save_all=True, append_images=others, duration=lasting, blend=turns)

    # --- Frames -----------------------------------------------------------------------------------------

    def _whole(self, frame: int) -> Box:
        return float(frame), 0.0, 0.0, float(self.width), float(self.height)

    def _frame(self, frame: int) -> Pixels:
        """A frame at its full size, from the last few or decoded."""
        # In one go each: chats that are forks of one another share it over threads.
        found = self._recent.pop(frame, None)
        if found is None:
            (found,) = self._decoded([frame])
        else:
            self._recent[frame] = found
        return found

    def _view(self, frame: int) -> Pixels:
        """A frame as it is first seen; all first views are decoded in one pass."""
        if frame not in self._views:
            wanted = self.shown if frame in self.shown else (frame,)
            for index, pixels in zip(wanted, self._decoded(wanted), strict=True):
                self._views[index] = self._smaller(pixels)
        return self._views[frame]

    def _smaller(self, pixels: Pixels) -> Pixels:
        if self._view_size == (self.width, self.height):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(self._view_size, Image.Resampling.LANCZOS))

    def _decoded(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode frames in one pass; each is among the last few then."""
        for index, pixels in zip(wanted, self._reader.read(wanted), strict=True):
            self._check(pixels, index)
            self._recent[index] = pixels
            while len(self._recent) > _RECENT:
                with suppress(KeyError):
                    self._recent.popitem(last=False)
            yield pixels

    def _check(self, pixels: Pixels, index: int) -> None:
        height, width = pixels.shape[:2]
        if (width, height) != (self.width, self.height):
            raise InputError(
                f"{self._reader.named(index)} is {width} x {height} pixels, but {self._reader.named(0)} is "
                f"{self.width} x {self.height}; the frames of a video must be of one size."
            )


def _milliseconds(seconds: float) -> int:
    """The time that a frame of an animated PNG lasts, as exactly as it can be written: it has 16 bits and a unit."""
    unit = next((unit for unit in (1, 10, 100) if 1000 * seconds <= unit * _LONGEST), 1000)
    return max(1, unit * min(_LONGEST, round(1000 * seconds / unit)))


def _frames(path: Path, config: VideoConfig) -> Frames:
    """What a path leads to; raises InputError, and OSError where it cannot be read."""
    if path.is_dir():
        return FolderFrames(path, config.folder_fps, config.max_pixels)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path of the video.")
    if not path.is_file():
        raise InputError(f"{path} is no regular file; give a video file or a folder of frames.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); get the video again.")
    return AnimationFrames(path, config.max_pixels) if is_picture(path) else FileFrames(path, config.max_pixels)
