"""Reader of animated images through Pillow: times are read from headers, frames are decoded when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vilavt_components.sources.picture_decoding import Pixels, decode_picture
from vilavt_components.sources.video.animation_times import MAX_FRAMES, Timeline, read_timeline
from vilavt_components.sources.video.frames import FrameReader, check_size
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.pillow import begins_as, explain_errors, open_picture

log = logging.getLogger(__name__)

# Not all formats of Pillow, which takes some video files for images that it then cannot decode.
_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "JPEG", "BMP", "TIFF")
_USUAL_DURATION = 0.1
"""Seconds that browsers show a frame without a duration."""
_LEAST_FRAMES = 10
"""Frames that an animation counts as at least."""
_LEAST_COST = 20_000
"""Pixels that a small frame counts as: decoding one has costs of its own."""


class AnimationFrames(FrameReader):
    """The frames of an animated GIF, PNG, WebP or AVIF, timed by their durations; a still image has one frame.

    Opening reads headers and decodes nothing.
    """

    def __init__(self, file: Path | EmbeddedFile, max_pixels: int, budget: int) -> None:
        self.name, self._file = str(file), file
        self._max_pixels, self._budget = max_pixels, budget
        with open_picture(file, max_pixels, _FORMATS) as image, explain_errors(self.name, max_pixels):
            check_size(*image.size, self.name, max_pixels)
            timeline = _read_frames(file, image)
            # Each frame is drawn on the one before it, so the last one takes all of them. Pages stand alone.
            if image.format != "TIFF":
                self._check_cost(image.size, timeline)
        if not timeline.durations:
            raise InputError(f"{file} is damaged or cut off: no frame of it is whole. Get the video again.")
        if timeline.ended:
            count = len(timeline.durations)
            log.warning(
                "%s ends early: %d frames can be read (%s), and only they are used.", file, count, timeline.ended
            )
        lasting = [seconds or _USUAL_DURATION for seconds in timeline.durations]
        self.times = (0.0, *accumulate(lasting[:-1]))

    def _check_cost(self, size: tuple[int, int], timeline: Timeline) -> None:
        """Refuse an animation of more pixels than may be decoded; raises InputError."""
        cost, (width, height) = 0, size
        for number in range(len(timeline.durations)):
            if timeline.sizes:
                width, height = max(width, timeline.sizes[number][0]), max(height, timeline.sizes[number][1])
            check_size(width, height, f"frame {number} of {self.name}", self._max_pixels)
            cost += max(_LEAST_COST, width * height)
        # Decoders hold several copies of a frame, so large ones are refused even if they are few.
        if len(timeline.durations) > 1 and max(cost, _LEAST_FRAMES * width * height) > self._budget:
            raise InputError(
                f"{self.name} is too large: {len(timeline.durations):,} frames of {width} x {height} pixels, and at "
                f"most {self._budget:,} pixels are decoded of an animated image. Scale it down, convert it to a video "
                "file, or raise max_animation_pixels."
            )

    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode the frames in one pass."""
        with open_picture(self._file, self._max_pixels, _FORMATS) as image:
            for index in wanted:
                name = self.describe_frame(index)
                with explain_errors(name, self._max_pixels):
                    image.seek(index)
                    pixels = decode_picture(image, name, self._max_pixels)
                yield pixels


def _read_frames(file: Path | EmbeddedFile, image: Any) -> Timeline:
    """Return the timeline of an opened image; raises InputError for too many frames."""
    found = read_timeline(file, image.format) if image.format == "GIF" or getattr(image, "is_animated", False) else None
    if image.format == "GIF" and found is not None:
        return found
    # The further images of a photo (MPO) are previews of it, or were taken through another lens.
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > MAX_FRAMES:
        raise InputError(
            f"{file} has {count:,} frames, and at most {MAX_FRAMES:,} are read. Convert it to a video file."
        )
    durations = [] if found is None else found.durations[:count]
    if found is not None and found.ended:
        return Timeline(durations, ended=found.ended)
    return Timeline(durations + [0.0] * (count - len(durations)))


def is_picture(path: Path) -> bool:
    """Return True if a file begins as an image, animated or not, rather than as a video."""
    with path.open("rb") as file:
        start = file.read(16)
    return any(begins_as(start, name) for name in _FORMATS)
