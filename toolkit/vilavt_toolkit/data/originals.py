"""What samples show, by name: images and videos, and whether they are there before they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.data.fields import BadRow, digest
from vilavt_toolkit.utils.pillow import any_size

if TYPE_CHECKING:
    from PIL.Image import Image

_VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})


_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held; from 5 on, width and height change places."""


Size = tuple[int, int]
"""Width and height in pixels, the image upright."""


@dataclass(frozen=True)
class Named:
    """An image or a video as a row names it, and the field that does."""

    field: str
    name: str
    video: bool = False


def named(field: str, names: tuple[str, ...], listed: bool = True, video: bool = False) -> tuple[Named, ...]:
    """Names under one field, a list or a text; what is named like a video file is a video."""
    return tuple(
        Named(f"{field}[{number}]" if listed else field, name, video or is_video(name))
        for number, name in enumerate(names)
    )


def is_video(name: str) -> bool:
    """Whether a name is that of a video file."""
    return Path(name).suffix.lower() in _VIDEOS


class Inspector:
    """Looks at every original once; with `decode`, at all of its pixels."""

    def __init__(self, decode: bool = False) -> None:
        self.decode = decode
        self._seen: dict[int, Size | str] = {}

    def look(self, original: Any, video: bool) -> Size | None:
        """The size of an image, None for a video; raises BadRow with what is wrong and what to do."""
        if not isinstance(original, str):
            return self._decoded(original)
        key = int(digest(original), 16)
        if key not in self._seen:
            try:
                self._seen[key] = self._at_path(original, video) or (0, 0)
            except BadRow as problem:
                self._seen[key] = str(problem)
        found = self._seen[key]
        if isinstance(found, str):
            raise BadRow(found)
        return found if found != (0, 0) else None

    def _at_path(self, path: str, video: bool) -> Size | None:
        try:
            folder, size = os.path.isdir(path), os.stat(path).st_size
        except (OSError, ValueError) as error:
            what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be seen ({error})"
            raise BadRow(f"{path} {what}; check the path, or set root to the folder that it is relative to.") from None
        if not size and not folder:
            raise BadRow(f"{path} is empty (0 bytes); get the file again.")
        if video:
            return None
        if folder:
            raise BadRow(f"{path} is a folder; give the path of an image.")
        from PIL import Image, UnidentifiedImageError

        try:
            with any_size(), open(path, "rb") as file, Image.open(file) as image:
                return self._decoded(image, path)
        except UnidentifiedImageError:
            raise BadRow(f"{path} is no image in a known format; convert it to PNG or JPEG.") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise BadRow(f"{path} cannot be read ({error}); get the image again.") from None

    def _decoded(self, image: Image, name: str = "it") -> Size:
        if self.decode:
            try:
                image.load()
            except (OSError, ValueError, SyntaxError) as error:
                raise BadRow(f"{name} cannot be decoded ({error}); get the image again.") from None
        width, height = image.size
        # Only where the header holds it: of other files all pixels would have to be decoded.
        turned = bool(image.info.get("exif")) and image.getexif().get(_ORIENTATION, 1) > 4
        return (height, width) if turned else (width, height)
