"""Originals that rows name: images and videos, inspected before they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.data.fields import BadRow, hash_parts
from vilavt_toolkit.utils.pillow import limit_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

_VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})

_ORIENTATION = 0x0112
"""The EXIF tag for how the camera was held; from 5 on, width and height change places."""


Size = tuple[int, int]
"""Width and height in pixels, the image upright."""

_NO_SIZE = (0, 0)


@dataclass(frozen=True)
class NamedOriginal:
    """An image or a video as a row names it, and the field that does."""

    field: str
    name: str
    video: bool = False


def name_originals(
    field: str, names: tuple[str, ...], listed: bool = True, video: bool = False
) -> tuple[NamedOriginal, ...]:
    """Return the originals named under one field, a list or, if not `listed`, a text.

    All are videos with `video`; else those are whose names end as those of video files.
    """
    return tuple(
        NamedOriginal(f"{field}[{number}]" if listed else field, name, video or is_video(name))
        for number, name in enumerate(names)
    )


def is_video(name: str) -> bool:
    """Return True if a name ends as that of a video file."""
    return Path(name).suffix.lower() in _VIDEOS


class Inspector:
    """Inspects every original once: its header or, with `decode`, all of its pixels."""

    def __init__(self, decode: bool = False) -> None:
        self.decode = decode
        # One image may stand in a hundred thousand rows, and a data set has millions: by its hash, a path takes no
        # more than an int. An error is remembered as its text.
        self._results: dict[int, Size | str] = {}

    def inspect(self, original: Any, video: bool) -> Size | None:
        """Return the size of an image, None for a video; raises BadRow with what is wrong and what to do."""
        if not isinstance(original, str):
            return self._measure_image(original)
        # A key of 64 bits: among a billion paths, two are alike with a chance of about 3%.
        key = int(hash_parts(original), 16)
        if key not in self._results:
            try:
                self._results[key] = self._inspect_path(original, video) or _NO_SIZE
            except BadRow as problem:
                self._results[key] = str(problem)
        result = self._results[key]
        if isinstance(result, str):
            raise BadRow(result)
        return result if result != _NO_SIZE else None

    def _inspect_path(self, path: str, video: bool) -> Size | None:
        """Return the size of the image at a path, None for a video; raises BadRow."""
        try:
            is_folder, size = os.path.isdir(path), os.stat(path).st_size
        except (OSError, ValueError) as error:
            what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise BadRow(
                f"{path} {what}. Check the path, or set task.root (--root) to the folder that it is relative to."
            ) from None
        if not size and not is_folder:
            raise BadRow(f"{path} is empty (0 bytes). Get the file again.")
        # A video may be a folder of frames. To open one takes a decoder, which is for the recipe's source.
        if video:
            return None
        if is_folder:
            raise BadRow(f"{path} is a folder. Give the path of an image.")
        from PIL import Image, UnidentifiedImageError

        try:
            # The recipe's source decides how large an image may be, not this check.
            with limit_pixels(None), open(path, "rb") as file, Image.open(file) as image:
                return self._measure_image(image, path)
        except UnidentifiedImageError:
            raise BadRow(f"{path} is no image in a known format. Convert it to PNG or JPEG.") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise BadRow(f"{path} cannot be read ({error}). Get the image again.") from None

    def _measure_image(self, image: Image, name: str = "it") -> Size:
        """Return the size of an image as its source shows it, upright; raises BadRow if it cannot be decoded."""
        if self.decode:
            try:
                image.load()
            except (OSError, ValueError, SyntaxError) as error:
                raise BadRow(f"{name} cannot be decoded ({error}). Get the image again.") from None
        width, height = image.size
        # Only if the header holds EXIF data: for other files `getexif` would decode all pixels.
        is_turned = bool(image.info.get("exif")) and image.getexif().get(_ORIENTATION, 1) > 4
        return (height, width) if is_turned else (width, height)
