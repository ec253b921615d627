"""Durations of the frames of animated images, read without decoding a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.png import find_chunks

MAX_FRAMES = 100_000


@dataclass
class Timeline:
    """The frames of an animation that are whole."""

    durations: list[float] = field(default_factory=list)
    """Seconds of each frame; 0 if the file does not say."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height that each frame needs, for formats in which frames may be larger than the picture."""
    ended: str = ""
    """Reason why the file ends early; empty if it does not."""

    def add_frame(self, seconds: float) -> None:
        """Add a frame; raises InputError if there are too many."""
        if len(self.durations) == MAX_FRAMES:
            raise InputError(
                f"an animated image of more than {MAX_FRAMES:,} frames is not read. Convert it to a video."
            )
        self.durations.append(seconds)


def read_timeline(file: Path | EmbeddedFile, kind: str) -> Timeline | None:
    """Read the timeline of an animation in Pillow's format `kind`; None for other formats. Raises InputError."""
    read = _READERS.get(kind)
    if read is None:
        return None
    with file.open("rb") if isinstance(file, Path) else file.open() as stream:
        return read(stream)


def _read_gif(file: BinaryIO) -> Timeline:
    """Read the blocks of a GIF."""
    found, seconds = Timeline(), 0.0
    head = file.read(13)
    file.seek(_palette_length(head[10:11]), 1)
    while kind := file.read(1):
        if kind == b";":
            return found
        if kind == b"!":
            label, block = file.read(1), _read_block(file)
            if label == b"\xf9":
                seconds = int.from_bytes(block[1:3], "little") / 100
            whole = not block or _skip_blocks(file)
        elif kind == b",":
            place = file.read(9)
            left, top, width, height = (int.from_bytes(place[k : k + 2], "little") for k in (0, 2, 4, 6))
            # The local palette, and the byte with the size of codes.
            file.seek(_palette_length(place[8:]) + 1, 1)
            whole = _skip_blocks(file)
            if whole:
                found.add_frame(seconds)
                found.sizes.append((left + width, top + height))
            seconds = 0.0
        else:
            whole = True  # a stray byte, which decoders pass over
        if not whole:
            break
    found.ended = "its end is missing"
    return found


def _palette_length(flags: bytes) -> int:
    """Return the number of bytes of a GIF's palette by the byte of flags before it."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0


def _read_block(file: BinaryIO) -> bytes:
    length = file.read(1)
    return file.read(length[0]) if length else b""


def _skip_blocks(file: BinaryIO) -> bool:
    """Skip blocks of data up to the empty one; returns False if the file ends before it."""
    while length := file.read(1):
        if length == b"\0":
            return True
        file.seek(length[0], 1)
    return False


def _read_png(file: BinaryIO) -> Timeline:
    """Read the frame headers of an animated PNG. An image before the first of them counts as a frame."""
    found, promised, seconds, begun, size = Timeline(), 0, 0.0, False, _file_size(file)
    for name, (start, end) in find_chunks(file):
        is_data = name in (b"IDAT", b"fdAT")
        # The data of a frame may be in many chunks: it is whole if something else follows.
        if begun and not is_data:
            found.add_frame(seconds)
            seconds = 0.0
        begun = is_data
        if name == b"IEND" and len(found.durations) >= promised:
            return found
        if end > size:
            break
        if name == b"acTL":
            promised = int.from_bytes(_read_span(file, (start + 8, start + 12)), "big")
        elif name == b"fcTL":
            part = _read_span(file, (start + 28, start + 32))
            seconds = int.from_bytes(part[:2], "big") / (int.from_bytes(part[2:], "big") or 100)
    found.ended = f"of {promised} that were promised"
    return found


def _file_size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _read_webp(file: BinaryIO) -> Timeline:
    """Read the frame headers of a WebP, which Pillow opens only if it is whole."""
    found, place, end = Timeline(), 12, _file_size(file)
    while place + 8 <= end:
        file.seek(place)
        head = file.read(24)
        if head[:4] == b"ANMF":
            found.add_frame(int.from_bytes(head[20:23], "little") / 1000)
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2
    return found


def _read_avif(file: BinaryIO) -> Timeline:
    """Read the table of durations of an AVIF, which Pillow opens only if its headers are whole."""
    found = Timeline()
    for track in _find_boxes(file, (0, _file_size(file)), (b"moov", b"trak")):
        clock = next(_find_boxes(file, track, (b"mdia", b"mdhd")), None)
        table = next(_find_boxes(file, track, (b"mdia", b"minf", b"stbl", b"stts")), None)
        if clock is None or table is None:
            continue
        head = _read_span(file, clock)
        # Two times of 4 or 8 bytes stand before the units of a second.
        rate = int.from_bytes(head[20:24] if head[:1] == b"\1" else head[12:16], "big") or 1
        rows = _read_span(file, table)[8:]
        for start in range(0, len(rows) - 7, 8):
            count, ticks = (int.from_bytes(rows[k : k + 4], "big") for k in (start, start + 4))
            for _ in range(count):
                found.add_frame(ticks / rate)
        break
    return found


def _find_boxes(file: BinaryIO, within: tuple[int, int], names: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
    """Yield the places of the contents of boxes that lie inside each other under these names."""
    place, end = within
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if length < 8:  # a box of more than 4 GiB, or one up to the end of the file: neither holds headers
            return
        if head[4:] == names[0]:
            inner = (place + 8, min(end, place + length))
            yield from _find_boxes(file, inner, names[1:]) if names[1:] else [inner]
        place += length


def _read_span(file: BinaryIO, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(min(span[1] - span[0], 8 * MAX_FRAMES))


_READERS: dict[str, Callable[[BinaryIO], Timeline]] = {
    "GIF": _read_gif,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "AVIF": _read_avif,
}
