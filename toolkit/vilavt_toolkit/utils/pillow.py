"""What samples show, by name: images and videos, and whether they are there before they are needed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_PILLOW_LIMIT = threading.Lock()


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow read headers of images of any size: how large one may be is for the recipe's source to say."""
    from PIL import Image

    with _PILLOW_LIMIT, warnings.catch_warnings():
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
