"""Files inside other files, such as an image in a tar file."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

Span = tuple[int, int]
"""The first byte of a part of a file, and the first byte after it."""


@dataclass(frozen=True)
class EmbeddedFile:
    """A file inside another file, or in memory. It can be sent to another process, and keeps no file open."""

    name: str
    """Says in errors what it is and where."""
    content: bytes | tuple[Path, Span]
    """Its bytes, or the file that holds it and where."""

    def open(self) -> BinaryIO:
        """Open it for reading; raises OSError."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        path, span = self.content
        # Each has its own file handle, so that files of one archive can be read at the same time.
        return io.BufferedReader(SpanReader(path.open("rb"), [span]))

    def __str__(self) -> str:
        return self.name


class SpanReader(io.RawIOBase):
    """Parts of an open file, one after another, as a file of their own, which closes the first one.

    Bytes are read when they are asked for and never copied into memory before.
    """

    def __init__(self, file: BinaryIO, spans: Sequence[Span]) -> None:
        super().__init__()
        self._file, self._spans, self._position = file, spans, 0
        # Entry k is the place of span k in this file; the last one is the size.
        self._places = [0, *accumulate(max(0, end - start) for start, end in spans)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._places[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._places[-1]:
            return 0
        number = bisect_right(self._places, self._position) - 1
        room = min(len(buffer), self._places[number + 1] - self._position)
        self._file.seek(self._spans[number][0] + self._position - self._places[number])
        data = self._file.read(room)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
