"""What source `video` takes frames from: arrays, folders of images, animated images. Files of video: `_video_file`."""

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
from vilavt_components.sources.video.frame_selection import Times, written
from vilavt_toolkit.errors import InputError

log = logging.getLogger(__name__)

_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Not all that Pillow knows: it takes some video files for images that it then cannot decode.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "JPEG", "BMP", "TIFF")
_GIF_DEFAULT = 100
"""Milliseconds of a frame without a duration, as browsers show it."""
_GIF_END = b";"


class Frames(ABC):
    """The frames of one video; nothing of them is kept."""

    name: str
    """What errors call the video."""
    times: Times

    @abstractmethod
    def read(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode the frames at rising indices one by one, uint8 [h, w, 3]; raises InputError naming the frame."""

    def named(self, index: int) -> str:
        """What errors call a frame."""
        return f"frame {index} ({written(self.times, index)} s) of {self.name}"


class ArrayFrames(Frames):
    """Frames in memory, uint8 [n, h, w, 3] or one [h, w, 3], `rate` a second."""

    name = "the video in memory"

    def __init__(self, array: NDArray[Any], rate: float, max_pixels: int) -> None:
        frames = array[None] if array.ndim == 3 else array
        if array.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:3]:
            raise InputError(
                f"a video array must be uint8 [n, h, w, 3], not {array.dtype} {list(array.shape)}; convert it."
            )
        if not len(frames):
            raise InputError(f"{self.name} has no frames; give one at least.")
        check_size(frames.shape[2], frames.shape[1], self.name, max_pixels)
        self._frames: Pixels = frames
        self.times = tuple(index / rate for index in range(len(frames)))

    def read(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """The frames as they are."""
        return (self._frames[index] for index in wanted)


class FolderFrames(Frames):
    """The images of a folder in the natural order of their names, `rate` a second; other files are passed over."""

    def __init__(self, folder: Path, rate: float, max_pixels: int) -> None:
        self.name = str(folder)
        self._config = ImageConfig(max_pixels)
        found = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != "."]
        self._files = sorted(found, key=lambda file: _natural(file.name))
        if not self._files:
            raise InputError(f"{folder} holds no frames; put images into it, such as 0001.png, or name another folder.")
        self.times = tuple(index / rate for index in range(len(self._files)))

    def read(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """The images, each opened when its turn comes."""
        return (ImageSource.open(self._files[index], self._config).pixels for index in wanted)

    def named(self, index: int) -> str:
        """The path of its file."""
        return str(self._files[index])


def _natural(name: str) -> tuple[list[Any], str]:
    """Sort key under which frame9 comes before frame10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


class AnimationFrames(Frames):
    """The frames of an animated GIF, PNG, WebP or AVIF; a still image has one. Times are sums of the durations."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name, self._path = str(path), path
        self._config = ImageConfig(max_pixels)
        durations: list[float] = []
        ended = ""
        with Image.open(path, formats=_formats()) as image:
            check_size(*image.size, self.name, max_pixels)
            try:
                for index in range(_count(image)):
                    image.seek(index)
                    check_size(*image.size, f"frame {index} of {self.name}", max_pixels)  # in a TIFF each has its own
                    image.load()
                    durations.append((image.info.get("duration") or _GIF_DEFAULT) / 1000)
                if image.format == "GIF" and not _tail(path).endswith(_GIF_END):
                    ended = "its end is missing"
            except (InputError, Image.DecompressionBombError):
                raise
            except Exception as error:  # malformed data makes Pillow's decoders raise almost anything
                ended = str(error) or type(error).__name__
        if not durations:
            raise InputError(f"{path} is damaged or cut off: no frame can be read ({ended}); get the video again.")
        if ended:
            log.warning(
                "%s ends early: %d frames can be read (%s), and only they are used.", path, len(durations), ended
            )
        self.times = (0.0, *accumulate(durations[:-1]))

    def read(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """The frames in one pass."""
        try:
            opened = Image.open(self._path, formats=_formats())
        except OSError as error:  # it was there when the video was opened
            raise InputError(f"{self.name} cannot be read any more ({error}); put the video back.") from error
        with opened as image:
            for index in wanted:
                try:
                    image.seek(index)
                    yield ImageSource.open(image, self._config).pixels
                except (EOFError, OSError, InputError) as error:
                    raise InputError(
                        f"{self.named(index)} cannot be decoded ({error}); get the video again."
                    ) from error


def _tail(path: Path) -> bytes:
    """The last bytes of a file, without what some fill its end with."""
    with path.open("rb") as file:
        file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
        return file.read().rstrip(b"\0\r\n")


def _count(image: Image.Image) -> int:
    """How many frames an opened image has."""
    # The others of a photo are previews of it, or taken by another lens.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def is_picture(path: Path) -> bool:
    """Whether a file is an image, animated or not, rather than a video."""
    try:
        with Image.open(path, formats=_formats()):
            return True
    except UnidentifiedImageError:
        return False


def _formats() -> list[str]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return [name for name in _ANIMATED if name in Image.OPEN]


def check_size(width: int, height: int, name: str, most: int) -> None:
    """Refuse frames that would fill the memory; raises InputError."""
    if width * height > most:
        raise InputError(
            f"{name} is too large: frames of {width} x {height} pixels, and at most {most:,} are read; "
            "scale it down or raise max_pixels."
        )
