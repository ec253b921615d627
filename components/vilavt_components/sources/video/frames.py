"""Readers of frames for source `video`: arrays, folders of images, animated images. `decoding.py` reads video files."""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vilavt_components.sources.image import ImageConfig, ImageSource, Pixels
from vilavt_components.sources.video.frame_selection import FrameTimes, shortest_time
from vilavt_toolkit.errors import InputError

log = logging.getLogger(__name__)

_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Not all formats of Pillow, which takes some video files for images that it then cannot decode.
_IMAGE_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "JPEG", "BMP", "TIFF")
_GIF_DEFAULT = 100
"""Milliseconds that browsers show a frame without a duration."""
_GIF_END = b";"


class FrameReader(ABC):
    """A reader of the frames of one video, which keeps none of them."""

    name: str
    """The name of the video in errors."""
    times: FrameTimes

    @abstractmethod
    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode the frames at rising indices one by one, uint8 [h, w, 3]; raises InputError naming the frame."""

    def describe_frame(self, index: int) -> str:
        """Name a frame for errors."""
        return f"frame {index} ({shortest_time(self.times, index)} s) of {self.name}"


class ArrayFrames(FrameReader):
    """Frames in memory, uint8 [n, h, w, 3] or one [h, w, 3], with `rate` frames a second."""

    name = "the video in memory"

    def __init__(self, array: NDArray[Any], rate: float, max_pixels: int) -> None:
        frames = array[None] if array.ndim == 3 else array
        if array.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:3]:
            raise InputError(
                f"a video array must be uint8 [n, h, w, 3], not {array.dtype} {list(array.shape)}. Convert it."
            )
        if not len(frames):
            raise InputError(f"{self.name} has no frames. Give one at least.")
        check_size(frames.shape[2], frames.shape[1], self.name, max_pixels)
        self._frames: Pixels = frames
        self.times = tuple(index / rate for index in range(len(frames)))

    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Yield the frames as they are."""
        return (self._frames[index] for index in wanted)


class FolderFrames(FrameReader):
    """The images of a folder in the natural order of their names, `rate` a second; other files are ignored."""

    def __init__(self, folder: Path, rate: float, max_pixels: int) -> None:
        self.name = str(folder)
        self._config = ImageConfig(max_pixels)
        found = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != "."]
        self._files = sorted(found, key=lambda file: _natural_sort_key(file.name))
        if not self._files:
            raise InputError(f"{folder} holds no frames. Put images into it, such as 0001.png, or name another folder.")
        self.times = tuple(index / rate for index in range(len(self._files)))

    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Yield the images, each opened when it is needed."""
        return (ImageSource.open(self._files[index], self._config).pixels for index in wanted)

    def describe_frame(self, index: int) -> str:
        """Return the path of the frame's file."""
        return str(self._files[index])


def _natural_sort_key(name: str) -> tuple[list[Any], str]:
    """Return a sort key under which frame9 comes before frame10."""
    # Splitting at a group puts the numbers on the odd places, so texts and numbers are never compared.
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


class AnimationFrames(FrameReader):
    """The frames of an animated GIF, PNG, WebP or AVIF, timed by their durations; a still image has one frame."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name, self._path = str(path), path
        self._config = ImageConfig(max_pixels)
        durations: list[float] = []
        ended = ""
        with Image.open(path, formats=_supported_formats()) as image:
            check_size(*image.size, self.name, max_pixels)
            # Every frame is decoded once, since only that shows where a file is cut off.
            try:
                for index in range(_count_frames(image)):
                    image.seek(index)
                    # Once more, since the pages of a TIFF have sizes of their own.
                    check_size(*image.size, f"frame {index} of {self.name}", max_pixels)
                    image.load()
                    durations.append((image.info.get("duration") or _GIF_DEFAULT) / 1000)
                if image.format == "GIF" and not _read_tail(path).endswith(_GIF_END):
                    ended = "its end is missing"
            except (InputError, Image.DecompressionBombError):
                raise
            except Exception as error:
                # Malformed data makes Pillow's decoders raise almost anything.
                ended = str(error) or type(error).__name__
        if not durations:
            raise InputError(f"{path} is damaged or cut off: no frame can be read ({ended}). Get the video again.")
        if ended:
            log.warning(
                "%s ends early: %d frames can be read (%s), and only they are used.", path, len(durations), ended
            )
        self.times = (0.0, *accumulate(durations[:-1]))

    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Yield the frames in one pass."""
        try:
            opened = Image.open(self._path, formats=_supported_formats())
        except OSError as error:
            # The file was there when the video was opened.
            raise InputError(f"{self.name} cannot be read any more ({error}). Put the video back.") from error
        with opened as image:
            for index in wanted:
                try:
                    image.seek(index)
                    yield ImageSource.open(image, self._config).pixels
                except (EOFError, OSError, InputError) as error:
                    raise InputError(
                        f"{self.describe_frame(index)} cannot be decoded ({error}). Get the video again."
                    ) from error


def _read_tail(path: Path) -> bytes:
    """Return the last bytes of a file, without the padding that some programs add."""
    with path.open("rb") as file:
        file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
        return file.read().rstrip(b"\0\r\n")


def _count_frames(image: Image.Image) -> int:
    """Count the frames of an opened image."""
    # The further images of a photo (MPO) are previews of it, or were taken through another lens.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def is_picture(path: Path) -> bool:
    """Return True if a file is an image, animated or not, rather than a video."""
    try:
        with Image.open(path, formats=_supported_formats()):
            return True
    except UnidentifiedImageError:
        return False


def _supported_formats() -> list[str]:
    """Return the image formats that the installed Pillow reads."""
    Image.init()
    return [name for name in _IMAGE_FORMATS if name in Image.OPEN]


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse frames that would fill the memory; raises InputError."""
    if width * height > max_pixels:
        raise InputError(
            f"{name} is too large: frames of {width} x {height} pixels, and at most {max_pixels:,} are read. "
            "Scale it down or raise max_pixels."
        )
