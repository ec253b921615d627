"""Originals that rows name: images and videos, inspected before they are needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.data.fields import BadRow, hash_parts
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.pillow import MAX_PIXELS, explain_errors, open_picture, upright_size
from vilavt_toolkit.utils.text import shorten_text

if TYPE_CHECKING:
    from PIL.Image import Image


Size = tuple[int, int]
"""Width and height in pixels, the image upright."""

_NO_SIZE = (0, 0)


class Inspector:
    """Inspects every original once: its header or, with `decode`, all of its pixels."""

    def __init__(self, decode: bool = False) -> None:
        self.decode = decode
        # One image may stand in a hundred thousand rows, and a data set has millions: by its hash, a path takes no
        # more than an int. An error is remembered as its text.
        self._results: dict[int, Size | str] = {}

    def inspect(self, original: Any, video: bool) -> Size | None:
        """Return the size of an image in a file, else None; raises BadRow with what is wrong and what to do."""
        if isinstance(original, EmbeddedFile):
            return self._measure_image(original)
        if not isinstance(original, str):
            return None
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
            reason = getattr(error, "strerror", None) or error
            what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
            raise BadRow(
                f"{shorten_text(path)} {what}. Check the path, or set task.root (--root) to the folder that it "
                "is relative to."
            ) from None
        if not size and not is_folder:
            raise BadRow(f"{path} is empty (0 bytes). Get the file again.")
        # A video may be a folder of frames. To open one takes a decoder, which is for the recipe's source.
        if video:
            return None
        if is_folder:
            raise BadRow(f"{path} is a folder. Give the path of an image.")
        return self._measure_image(Path(path))

    def _measure_image(self, file: Path | EmbeddedFile) -> Size:
        """Return the size of an image as its source shows it, upright; raises BadRow if it cannot be read."""
        try:
            # The recipe's source decides how large an image may be, so a header of any size is right.
            with open_picture(file, None) as image, explain_errors(str(file), MAX_PIXELS if self.decode else None):
                if self.decode:
                    _check_pixels(image, str(file))
                return upright_size(image, str(file))
        except InputError as error:
            raise BadRow(str(error)) from None


def _check_pixels(image: Image, name: str) -> None:
    """Decode all pixels; raises InputError first for more than a source takes by default, since memory is finite."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is too large: {width} x {height} pixels, and at most {MAX_PIXELS:,} are decoded. Scale it "
            "down, or check without --open and raise model.source.max_pixels."
        )
    image.load()
