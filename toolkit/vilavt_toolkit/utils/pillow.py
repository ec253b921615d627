"""The limit on the size of images that Pillow reads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Pillow's limit is a global of the process. One lock guards it: with two, a thread could save the value that another
# thread had set for a moment, and "restore" it for good. It is reentrant so that a context inside another one in the
# same thread restores the outer limit.
_LIMIT_LOCK = threading.RLock()


@contextmanager
def limit_pixels(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow read images of at most `max_pixels` pixels inside the block, or of any size for None.

    The limit also holds for images inside containers (icons, TIFF tiles), which only Pillow sees. A larger image
    raises DecompressionBombError or DecompressionBombWarning. Other threads that enter wait until the block ends.
    """
    from PIL import Image

    # Pillow's own limit stops at 179 megapixels, less than a scan or a satellite image. `catch_warnings` swaps a global
    # of the process too, so it must be inside the lock.
    with _LIMIT_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # they are about metadata
        # Pillow only warns up to twice its limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = previous
