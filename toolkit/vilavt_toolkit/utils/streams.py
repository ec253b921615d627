"""Standard streams that never end a command: closed, full, a pipe that nobody reads, or of a narrow encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast


class GuardedStream(io.TextIOWrapper):
    """A text stream for output that takes every text and raises nothing.

    What its encoding lacks is written as an escape, `\\xe9`. After the first failure it drops what it is given: work of
    hours must not be lost because nobody reads about it. `failure` tells it afterwards.
    """

    failure: OSError | None = None

    @classmethod
    def from_stream(cls, stream: io.TextIOWrapper) -> GuardedStream:
        """Take the place of a text stream, which cannot be used any more."""
        encoding, line_buffering = stream.encoding, stream.line_buffering
        stream.flush()
        return cls(stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering)

    def write(self, text: str) -> int:
        """Write a text, or drop it after a failure; return its length."""
        if self.failure is None:
            try:
                return super().write(text)
            except OSError as error:
                self._drop_rest(error)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or drop it after a failure."""
        if self.failure is None:
            try:
                super().flush()
            except OSError as error:
                self._drop_rest(error)

    def _drop_rest(self, error: OSError) -> None:
        self.failure = error
        # What is buffered is tried again when the program ends. It then goes where there is always room.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that was closed when the program started."""
    # The system gives the lowest free number to the next file that is opened, which a library would then print into.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - it lives as long as the program
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Guard both output streams of the program, and yield standard output, whose `failure` is set at the end."""
    open_closed_streams()
    # A program's own streams are of this class, which `sys` does not promise.
    output, errors = (GuardedStream.from_stream(cast(io.TextIOWrapper, stream)) for stream in (sys.stdout, sys.stderr))
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
