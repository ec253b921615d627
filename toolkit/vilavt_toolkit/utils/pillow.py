"""Image files as Pillow reads them: limits on their size, formats that are read, and errors in a sentence."""

from __future__ import annotations

import errno
import logging
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.png import SIGNATURE, strip_png

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 89_000_000
"""Most pixels of an image if nobody says otherwise; Pillow itself warns above 89.5 million."""
_UNREAD = frozenset({"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow knows and that are not read.

For EPS it starts Ghostscript, IPTC may wrap an EPS, WMF is drawn by Windows, and the others have no decoder.
"""
_ORIENTATION = 0x0112
"""The EXIF tag for how the camera was held."""

# Pillow's limit is a global of the process. One lock guards it: with two, a thread could save the value that another
# thread had set for a moment, and "restore" it for good. It is reentrant so that a context inside another one in the
# same thread restores the outer limit.
_LIMIT_LOCK = threading.RLock()


@cache
def _silence_libtiff() -> None:
    """Keep the libtiff inside Pillow from writing what is wrong with a file to stderr, once in a process."""
    import ctypes

    from PIL import _imaging

    # Pillow raises for the same faults. Its handle finds the symbols of the libraries that it was linked to. Turning
    # file descriptor 2 away for a moment instead would also lose what other threads write then.
    # OSError and AttributeError: Pillow was built without that library, or hides it.
    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


@contextmanager
def limit_pixels(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow read images of at most `max_pixels` pixels inside the block, or of any size for None.

    The limit also holds for images inside containers (icons, TIFF tiles), which only Pillow sees. A larger image
    raises DecompressionBombError or DecompressionBombWarning. Other threads that enter wait until the block ends.
    """
    from PIL import Image

    _silence_libtiff()
    # `catch_warnings` swaps a global of the process too, so it must be inside the lock.
    with _LIMIT_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # they are about metadata
        # Pillow only warns up to twice its limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        # What it logs as an error it also raises, in words that name no file.
        logger = logging.getLogger("PIL")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = previous
            logger.setLevel(level)


@contextmanager
def open_picture(
    file: Path | EmbeddedFile, max_pixels: int | None, formats: Sequence[str] | None = None
) -> Iterator[Image]:
    """Open an image file inside the block and read its header; raises InputError that names the file.

    `formats` are those that may be read; None: all that Pillow decodes itself. Nothing is decoded: whoever does, does
    it within `explain_errors`.
    """
    with explain_errors(str(file), max_pixels):
        stream = file.open("rb") if isinstance(file, Path) else file.open()
        try:
            image = _read_header(stream, str(file), formats)
        except BaseException:
            stream.close()
            raise
    with stream, image:
        yield image


def _read_header(stream: BinaryIO, name: str, formats: Sequence[str] | None) -> Image:
    """Open the image in a file; raises InputError if no format can."""
    from PIL import Image, UnidentifiedImageError

    start = stream.read(16)
    whole = strip_png(stream) if start.startswith(SIGNATURE) else stream
    whole.seek(0)
    readable = _choose_formats(formats)
    try:
        return Image.open(whole, formats=readable)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} {_explain_unknown(start, readable)}") from error


@contextmanager
def explain_errors(name: str, max_pixels: int | None) -> Iterator[None]:
    """Hold Pillow's limit inside the block, and turn whatever is raised into an InputError about the image `name`."""
    from PIL import Image

    try:
        with limit_pixels(max_pixels):
            yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow has a limit of its own on the sizes of a file's inner parts.
        limit = f"at most {max_pixels:,} pixels are read" if max_pixels else str(error)
        raise InputError(f"{name} is too large: {limit}. Scale it down or raise max_pixels.") from error
    except MemoryError as error:
        raise InputError(
            f"{name} needs more memory than is free. Scale it down, or lower max_pixels to refuse such images."
        ) from error
    except PermissionError as error:
        raise InputError(f"{name} cannot be read: permission denied. Change its permissions.") from error
    except Exception as error:
        # The system's errors have a number. Without one, malformed data makes Pillow raise almost anything.
        if isinstance(error, OSError) and error.errno is not None:
            advice = "Check the path of the image" if error.errno == errno.ENAMETOOLONG else "Get the image again"
            raise InputError(f"{name} cannot be read ({error.strerror or error}). {advice}.") from error
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"{name} is damaged or cut off ({why}). Get the image again.") from error


def _choose_formats(wanted: Sequence[str] | None) -> list[str]:
    """Return the formats that may be read, of those that the installed Pillow knows."""
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name not in _UNREAD and (wanted is None or name in wanted)]


def _explain_unknown(start: bytes, readable: Sequence[str]) -> str:
    """Say of a file that no format could open what it begins as, and what to do."""
    from PIL import Image

    # These brands stand for HEIC as well as for AVIF.
    begun = [] if start[8:12] in (b"mif1", b"msf1") else [name for name in Image.OPEN if begins_as(start, name)]
    known = next((name for name in begun if name in readable), None)
    if known is not None:
        return f"is damaged or cut off: it begins as {known} and cannot be read. Get the image again."
    if begun:
        return f"is in the format {begun[0]}, which is not read. Convert it to PNG or JPEG."
    return "is not an image in a known format. Convert it to PNG or JPEG."


def begins_as(start: bytes, name: str) -> bool:
    """Return True if 16 first bytes are those of an image format; False too if Pillow does not know the format."""
    from PIL import Image

    Image.init()
    accept = Image.OPEN.get(name, (None, None))[1]
    try:
        # A text says that the format is known and that this Pillow cannot read it.
        return accept is not None and accept(start) is not False
    except (IndexError, TypeError, struct.error):  # the file is shorter than what is looked at
        return False


def read_orientation(image: Image, name: str) -> int:
    """Return how an image has to be turned by its EXIF data, 1 to 8; 1, upright, if they say nothing that is valid."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:
        # EXIF blocks are often malformed while the pixels are good.
        log.warning("%s: its EXIF data cannot be read (%s). It is taken as upright.", name, error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_size(image: Image, name: str) -> tuple[int, int]:
    """Return the width and height of an image as it is shown, upright, without decoding it."""
    width, height = image.size
    # Only if the header holds such data: for other files `getexif` would decode all pixels.
    is_told = not {"exif", "xmp"}.isdisjoint(image.info)
    # From 5 on, width and height change places.
    return (height, width) if is_told and read_orientation(image, name) > 4 else (width, height)
