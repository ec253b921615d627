"""PNG files without the chunks that say nothing about pixels, which can be damaged or of any size."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from vilavt_toolkit.utils.embedded import Span, SpanReader

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_KEPT = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
"""Optional chunks that decide what is shown; chunks with a capital first letter always do."""
_EXIF = b"eXIf"
_MAX_EXIF = 2**20
"""Most bytes of EXIF data; cameras write less than 64 kB."""
_MAX_CHUNKS = 1_000_000


def strip_png(file: BinaryIO) -> BinaryIO:
    """Return a PNG without texts, colour profiles and the like; raises ValueError for too many chunks.

    Pillow refuses a whole file for a text of more than 1 MiB, and for a wrong checksum in any chunk before the pixels.
    """
    kept: list[Span] = [(0, len(SIGNATURE))]
    exif: list[Span] = []
    for name, span in find_chunks(file):
        if name == _EXIF:
            exif += [span] if _is_sound(file, span) else []
        elif name in _KEPT or not name[:1].islower():
            kept.append(span)
    # After the first chunk, where Pillow finds it without decoding: the orientation decides what size an image has.
    return io.BufferedReader(SpanReader(file, [*kept[:2], *exif[:1], *kept[2:]]))


def find_chunks(file: BinaryIO) -> Iterator[tuple[bytes, Span]]:
    """Yield the name of each chunk and its place; the last one may be cut off."""
    place = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if not head:
            return
        # Length, name, data, checksum.
        end = place + 12 + int.from_bytes(head[:4], "big")
        yield head[4:], (place, end)
        if head[4:] == b"IEND":
            return
        place = end
    raise ValueError(f"it has more than {_MAX_CHUNKS:,} chunks")


def _is_sound(file: BinaryIO, span: Span) -> bool:
    """Return True if a chunk is whole, of a usual size, and has the right checksum."""
    start, end = span
    if end - start > _MAX_EXIF:
        return False
    file.seek(start + 4)
    chunk = file.read(end - start - 4)
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")
