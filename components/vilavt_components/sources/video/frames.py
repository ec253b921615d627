"""Readers of frames for source `video`: arrays and folders; `animations.py` and `decoding.py` read files."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.picture_decoding import Pixels
from vilavt_components.sources.video.frame_selection import FrameTimes, shortest_time
from vilavt_toolkit.errors import InputError

_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse frames that would fill the memory; raises InputError."""
    if width * height > max_pixels:
        raise InputError(
            f"{name} is too large: frames of {width} x {height} pixels, and at most {max_pixels:,} are read. "
            "Scale it down or raise max_pixels."
        )
