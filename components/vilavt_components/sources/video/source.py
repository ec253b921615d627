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

from vilavt_components.sources.box_schema import (
    box_array_schema,
    coordinate_functions,
    image_axes,
    next_number_range,
    object_schema,
)
from vilavt_components.sources.picture_decoding import Pixels, decode_picture
from vilavt_components.sources.regular_file import check_regular_file, to_path
from vilavt_components.sources.video.animations import AnimationFrames, is_picture
from vilavt_components.sources.video.decoding import FileFrames
from vilavt_components.sources.video.frame_selection import end_time, nearest_frame, select_frames, shortest_time
from vilavt_components.sources.video.frames import ArrayFrames, FolderFrames, FrameReader
from vilavt_components.sources.video.rendering import FrameTile, draw_frames
from vilavt_toolkit.contracts import Box, Crop, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.pillow import MAX_PIXELS
from vilavt_toolkit.vision.boxes import BoxError, pixel_box, read_bbox, shorten_value, units_per_axis, write_bbox

_DEFAULT_FRAMES = 8
"""Frames shown if neither their number nor their rate is set."""
_TIME_UNITS = 10**6
"""Parts of a second in which a tool call names a moment."""
_CACHED_FRAMES, _CACHED_PIXELS = 4, 50_000_000
"""Most decoded frames that are kept for further regions, and most pixels of them; one is always kept."""
_MAX_DURATION_UNITS = 65_535
"""Most units that a frame of an animated PNG can last: durations have 16 bits."""


@dataclass(frozen=True)
class VideoConfig:
    """Settings of source `video`."""

    fps: float | None = setting(
        None, help="frames shown for every second of a video, or null for `frames` in all", minimum=0
    )
    frames: int | None = setting(
        None, help="most frames shown, evenly spread, or null for 8, with fps for as many as `pixels` allow",
        minimum=1,
    )  # fmt: skip
    pixels: int = setting(
        6_422_528, help="most pixels of all overviews of a video together, for which frames are made smaller", minimum=1
    )
    frame_pixels: int = setting(
        50_176, help="fewest pixels that a frame is made smaller to, before fewer frames are shown instead", minimum=1
    )
    folder_fps: float = setting(
        1.0, help="frames a second of a folder of images or an array in memory, which have no times", minimum=1e-6
    )
    max_pixels: int = setting(MAX_PIXELS, help="most pixels a frame may have when decoded", minimum=1)
    max_animation_pixels: int = setting(
        400_000_000,
        help="most pixels of all frames of an animated image together, counted as ten frames at least",
        minimum=1,
    )

    def __post_init__(self) -> None:
        # Recipes have been checked before, but a config may also be built in code, and `fps` divides.
        for part in fields(self):
            value, least = getattr(self, part.name), part.metadata["minimum"]
            if value is not None and not value >= least:
                raise ValueError(f"{part.name} {value} is below the least, {least}. Raise it.")
        if self.fps == 0:
            raise ValueError("fps 0 would show nothing. Give a rate above 0, or null.")


@sources.register("video", VideoConfig)
class VideoSource(Source):
    """A video: a folder of frames, an animated GIF, PNG or WebP, a file through PyAV, or uint8 [n, h, w, 3].

    Boxes are (frame, x1, y1, x2, y2): the number of a frame, counted from 0, and pixels of it. Frames are decoded
    when they are needed. Only the overviews, made smaller, and the last few frames are kept.
    """

    modality: ClassVar[str] = "image"
    opens: ClassVar[tuple[str, ...]] = ("video", "image")
    box_key: ClassVar[str] = "bbox_2d"
    time_key: ClassVar[str] = "time"
    box_help: ClassVar[tuple[str, str]] = (
        '"bbox_2d": [x1, y1, x2, y2], "time": 2.5',
        'boxes are in {steps} steps from its left and top edge; "time", in seconds, is for another moment of the same '
        "video, also one that was not shown, and may be left out.",
    )

    def __init__(self, frames: FrameReader, config: VideoConfig) -> None:
        self._reader = frames
        self._recent_frames: OrderedDict[int, Pixels] = OrderedDict()
        self._overview_cache: dict[int, Pixels] = {}
        self.times = frames.times
        """Seconds from the first frame to every frame."""
        (first,) = frames.read_frames([0])
        self._recent_frames[0] = first
        self.height, self.width = first.shape[:2]
        area = self.width * self.height
        # So many frames fit into the budget of pixels if each is made as small as allowed.
        room = max(1, config.pixels // min(config.frame_pixels, area))
        most = config.frames or (_DEFAULT_FRAMES if config.fps is None else room)
        self.overview_frames = select_frames(self.times, config.fps, min(most, room))
        """The numbers of the frames that are shown as overviews."""
        scale = min(1.0, math.sqrt(config.pixels / len(self.overview_frames) / area))
        self._view_size = max(1, int(self.width * scale)), max(1, int(self.height * scale))

    @classmethod
    def tiny(cls) -> VideoConfig:
        """Return settings that show three frames."""
        return VideoConfig(frames=3, max_pixels=1_000_000)

    @classmethod
    def example(cls) -> Pixels:
        """Return five frames in memory."""
        return np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)

    @classmethod
    def open(cls, original: Any, config: VideoConfig) -> VideoSource:
        """Open a folder, a file, frames uint8 [n, h, w, 3], or one image; raises InputError naming the file.

        A file that ends early has the frames that can be read, with a warning. Rotated videos are turned upright.
        Pixels are taken to be square.
        """
        if isinstance(original, np.ndarray):
            return cls(ArrayFrames(original, config.folder_fps, config.max_pixels), config)
        if isinstance(original, Image.Image):
            pixels = decode_picture(original, "the image in memory", config.max_pixels)
            return cls(ArrayFrames(pixels, config.folder_fps, config.max_pixels), config)
        if isinstance(original, EmbeddedFile):
            return cls(AnimationFrames(original, config.max_pixels, config.max_animation_pixels), config)
        if not isinstance(original, str | os.PathLike):
            raise InputError(
                f"a video must be a path, an image or an array of uint8 [n, h, w, 3], not {type(original).__name__}."
            )
        # The readers report bad content themselves. What is left here is that a file cannot be read at all.
        path = to_path(original)
        try:
            return cls(_open_frames(path, config), config)
        except PermissionError as error:
            raise InputError(f"{path} cannot be read: permission denied. Change its permissions.") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}).") from error

    @property
    def name(self) -> str:
        """The path as it was given, or a name for a video in memory."""
        return self._reader.name

    @property
    def extent(self) -> Box:
        """The whole of the first frame that is shown as an overview."""
        return self._frame_box(self.overview_frames[0])

    def overviews(self) -> Sequence[Box]:
        """Return the whole of every frame that is shown as an overview."""
        return [self._frame_box(frame) for frame in self.overview_frames]

    def label(self, box: Box) -> str:
        """Return the time of a region in seconds from the first frame, as "time" takes it: "2.5 s"."""
        return f"{shortest_time(self.times, int(box[0]))} s"

    def read_box(self, value: Mapping[str, Any], within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read {"bbox_2d": [x1, y1, x2, y2], "time": 2.5}; without a time, the frame is that of `within`.

        The time means the nearest of all frames, shown or not. Raises BoxError.
        """
        for key in value:
            if key not in (self.box_key, self.time_key):
                raise BoxError(f'"{str(key)[:40]}" does not belong to a region of a video; leave it out.')
        if self.box_key not in value:
            raise BoxError(f'"{self.box_key}": [x1, y1, x2, y2] is missing.')
        sides = read_bbox(value[self.box_key], within[1:], box_units, self.box_key)
        # Without a time the frame is exact. Written times are rounded, so they mean the nearest frame.
        frame = self._frame_at(value[self.time_key]) if self.time_key in value else within[0]
        return float(frame), *sides

    def _frame_at(self, moment: Any) -> int:
        """Return the frame that a tool call's time means; raises BoxError."""
        if isinstance(moment, bool) or not isinstance(moment, int | float):
            raise BoxError(f'"{self.time_key}" must be a number of seconds, not {shorten_value(moment)}.')
        if not 0 <= moment <= self._last_moment:
            last = shortest_time(self.times, len(self.times) - 1)
            raise BoxError(
                f'"{self.time_key}" {shorten_value(moment)} is out of range: the video runs from 0 to {last} seconds.'
            )
        return nearest_frame(self.times, moment)

    @property
    def _last_moment(self) -> float:
        """The last moment that a tool call may name: the end of the last frame, or its time if that was rounded up."""
        return max(end_time(self.times), float(shortest_time(self.times, len(self.times) - 1)))

    def box_schema(
        self, within: Box, box_units: int | tuple[int, ...], begun: tuple[int, ...] = ()
    ) -> Mapping[str, Any]:
        """Return the JSON schema of {"bbox_2d": [x1, y1, x2, y2], "time": 2.5}, with a time inside the video."""
        units = units_per_axis(box_units, 2)
        axes = image_axes(coordinate_functions(within[1:]), units, (self.width, self.height))
        # Rounded down to whole parts of a second, so that the largest allowed number is not after the end.
        last = math.floor(self._last_moment * _TIME_UNITS) / _TIME_UNITS
        time = {"type": "number", "minimum": 0, "maximum": last, "multipleOf": 1 / _TIME_UNITS}
        return object_schema(
            {self.box_key: box_array_schema(begun, next_number_range(axes, begun), units, self.box_key)}, {"time": time}
        )

    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as {"bbox_2d": [x1, y1, x2, y2]}, with a "time" if `within` is of another frame."""
        if not (float(box[0]).is_integer() and 0 <= box[0] < len(self.times)):
            raise BoxError(
                f"there is no frame {shorten_value(box[0])}: the video has frames 0 to {len(self.times) - 1}."
            )
        sides = {self.box_key: write_bbox(box[1:], within[1:], box_units)}
        return sides if box[0] == within[0] else {**sides, self.time_key: shortest_time(self.times, int(box[0]))}

    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut `box` out of its frame, data uint8 [h, w, 3]; an overview has its share of the budget of pixels."""
        frame = int(box[0])
        if not 0 <= frame < len(self.times):
            raise InputError(f"{self.name} has no frame {frame}. It has frames 0 to {len(self.times) - 1}.")
        if overview and tuple(box) == self._frame_box(frame):
            return Crop(self._overview_frame(frame), self.modality, overview)
        left, upper, right, lower = pixel_box(box[1:], self.width, self.height)
        return Crop(np.ascontiguousarray(self._full_frame(frame)[upper:lower, left:right]), self.modality, overview)

    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image.Image:
        """Draw the frames that have boxes, or all overviews without boxes, in rows of four below their times.

        The longer side is `size` pixels; None: that of the frames side by side, 4096 at most.
        """
        found: dict[int, list[tuple[int, Box]]] = {frame: [] for frame in ([] if boxes else self.overview_frames)}
        for number, box in enumerate(boxes, 1):
            found.setdefault(int(box[0]), []).append((number, box[1:]))
        tiles = [
            FrameTile(self.label((frame,)), partial(self._full_frame, frame), found[frame]) for frame in sorted(found)
        ]
        return draw_frames(tiles, (self.width, self.height), size)

    def save(self, path: Path) -> None:
        """Write the overviews into an animated PNG, each lasting until the next; a video in memory is written whole."""
        whole = isinstance(self._reader, ArrayFrames)
        shown, pixels = (
            (range(len(self.times)), self._full_frame) if whole else (self.overview_frames, self._overview_frame)
        )
        ends = [*(self.times[frame] for frame in shown[1:]), end_time(self.times)]
        lasting = [_png_duration(end - self.times[frame]) for frame, end in zip(shown, ends, strict=True)]
        first, *others = [Image.fromarray(pixels(frame)) for frame in shown]
        # Pillow merges a frame that equals the one before. Alternating blend modes keep them apart, and look the same
        # on frames without transparency.
        turns = [number % 2 for number in range(len(shown))]
        first.save(path, format="PNG", save_all=True, append_images=others, duration=lasting, blend=turns)

    # --- Frames -----------------------------------------------------------------------------------------

    def _frame_box(self, frame: int) -> Box:
        return float(frame), 0.0, 0.0, float(self.width), float(self.height)

    def _full_frame(self, frame: int) -> Pixels:
        """Return a frame at its full size, from the recent ones or decoded."""
        # `pop` rather than a look-up and a move: forks of a chat share this source among threads.
        found = self._recent_frames.pop(frame, None)
        if found is None:
            (found,) = self._decode_frames([frame])
        else:
            self._recent_frames[frame] = found
        return found

    def _overview_frame(self, frame: int) -> Pixels:
        """Return a frame at the size of an overview; all overviews are decoded in one pass."""
        if frame not in self._overview_cache:
            wanted = self.overview_frames if frame in self.overview_frames else (frame,)
            for index, pixels in zip(wanted, self._decode_frames(wanted), strict=True):
                self._overview_cache[index] = self._shrink_frame(pixels)
        return self._overview_cache[frame]

    def _shrink_frame(self, pixels: Pixels) -> Pixels:
        if self._view_size == (self.width, self.height):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(self._view_size, Image.Resampling.LANCZOS))

    def _decode_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode frames in one pass and remember the last few."""
        for index, pixels in zip(wanted, self._reader.read_frames(wanted), strict=True):
            self._check_frame_size(pixels, index)
            self._recent_frames[index] = pixels
            while len(self._recent_frames) > max(1, min(_CACHED_FRAMES, _CACHED_PIXELS // (self.width * self.height))):
                # Another thread may have removed the last one since.
                with suppress(KeyError):
                    self._recent_frames.popitem(last=False)
            yield pixels

    def _check_frame_size(self, pixels: Pixels, index: int) -> None:
        height, width = pixels.shape[:2]
        if (width, height) != (self.width, self.height):
            raise InputError(
                f"{self._reader.describe_frame(index)} is {width} x {height} pixels, but "
                f"{self._reader.describe_frame(0)} is {self.width} x {self.height}. The frames of a video must be of "
                "one size. Resize them."
            )


def _png_duration(seconds: float) -> int:
    """Round seconds to the milliseconds that a frame of an animated PNG can last: 16 bits of a unit of 1 to 1000 ms."""
    unit = next((unit for unit in (1, 10, 100) if 1000 * seconds <= unit * _MAX_DURATION_UNITS), 1000)
    return max(1, unit * min(_MAX_DURATION_UNITS, round(1000 * seconds / unit)))


def _open_frames(path: Path, config: VideoConfig) -> FrameReader:
    """Open the reader for a path; raises InputError, or OSError if it cannot be read."""
    if path.is_dir():
        return FolderFrames(path, config.folder_fps, config.max_pixels)
    check_regular_file(path, "video", "a video file or a folder of frames")
    # Pillow first, so that animated images can be read without PyAV, which is optional.
    if is_picture(path):
        return AnimationFrames(path, config.max_pixels, config.max_animation_pixels)
    return FileFrames(path, config.max_pixels)
