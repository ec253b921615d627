"""The cloud that every reader returns, and tables of numbers in text files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from vilavt_toolkit.errors import InputError

Numbers = NDArray[Any]

_MAX_QUOTED = 30
"""Most letters of a file that an error quotes."""
_MAX_DIGITS = 18
"""Most digits of a count; Python itself refuses to parse thousands of them."""
_MAX_LINE = 2**20
"""Most letters of a line that is no comment."""
_LIKE_NUMBER = re.compile(r"[^\w\s]*\d")
"""Signs and a digit: where a number may begin."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Bytes that some spreadsheets write before a text."""


@dataclass(frozen=True)
class PointColumns:
    """Holds what a file says about every point, in the file's own numbers."""

    xyz: Numbers
    """[N, 3]"""
    colour: Numbers | None
    """[N, 3]; unsigned integers over the whole range of their type, or other numbers from 0 to 1, 255 or 65535."""
    normal: Numbers | None
    """[N, 3]"""
    describe_point: Callable[[int], str]
    """Says for an index where in its file the point is, for errors."""


@dataclass(frozen=True)
class PointTable:
    """A table in a text file."""

    path: Path
    start: int = 0
    """First byte of the lines that hold the table."""
    first_line: int = 1
    """Number of the line there, counted from 1."""
    skipped_lines: int = 0
    """Lines before the table, with content or without."""
    skipped_rows: int = 0
    """Lines with content before the table, behind those."""
    row_count: int | None = None
    """Number of rows; None: all lines that follow."""
    comments: str | None = "#"
    delimiter: str | None = None
    """The character between two numbers; None: blanks."""
    rows_after: int | None = None
    """Number of lines with content that must follow the table; None: any."""

    def read_numbers(self, max_rows: int) -> Numbers:
        """Read the table, [rows, columns]; raises InputError naming the line, also for more than `max_rows` rows."""
        lines = (text for _, text in self.table_lines(max_rows))
        try:
            with warnings.catch_warnings():
                # NumPy warns about an empty table, which gets an error of its own below.
                warnings.simplefilter("ignore", UserWarning)
                # Without `max_rows`, for which NumPy would allocate all rows before it reads the first.
                table: Numbers = np.loadtxt(lines, comments=None, delimiter=self.delimiter, ndmin=2)
        except ValueError as error:
            raise self._find_error(max_rows) from error
        if self.row_count is None:
            check_point_count(self.path, len(table), max_rows)
        elif len(table) < self.row_count:
            raise missing_vertices_error(self.path, self.row_count, f"has {len(table):,} lines of them")
        return table

    def table_lines(self, max_rows: int) -> Iterator[tuple[int, str]]:
        """Yield (line number, text) of at most `max_rows` + 1 rows; raises InputError for a wrong number of others."""
        # One more than allowed, so that `check_point_count` sees that there are too many.
        numbered = self.numbered_lines()
        yield from islice(numbered, max_rows + 1 if self.row_count is None else self.row_count)
        if self.rows_after is not None:
            self._check_rest(numbered, self.rows_after)

    def _check_rest(self, numbered: Iterator[tuple[int, str]], promised: int) -> None:
        """Raise InputError unless as many lines follow as the header promises."""
        # The faces are counted too: a vertex too many would be taken for one of them, and the other way round.
        after = [number for number, _ in islice(numbered, promised + 1)]
        what = f"the header promises {self.row_count:,} vertices"
        what += f" and {promised:,} lines behind them" if promised else ""
        if len(after) > promised:
            raise InputError(f"{self.path}, line {after[-1]}: {what} and more follow. Get the file again.")
        if len(after) < promised:
            raise InputError(f"{self.path}: {what}, and {len(after):,} lines follow the vertices. Get the file again.")

    def describe_row(self, index: int) -> str:
        """Say on which line a row is."""
        number = next(islice((number for number, _ in self.numbered_lines()), index, None), None)
        return f"row {index}" if number is None else f"line {number}"

    def numbered_lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines of the table as (line number, text), without comments and empty lines."""
        with open_text(self.path, self.start) as file:
            yield from islice(self._content_lines(file), self.skipped_rows, None)

    def _content_lines(self, file: TextIO) -> Iterator[tuple[int, str]]:
        lines = read_lines(file, self.path, self.comments or "", self.first_line)
        for number, line in islice(lines, self.skipped_lines, None):
            text = (line.partition(self.comments)[0] if self.comments else line).strip()
            if text:
                yield number, text

    def _find_error(self, max_rows: int) -> InputError:
        """Return an error about the first line that is wrong."""
        # NumPy's own message names no line of the file, so the lines are read once more.
        width = 0
        for number, text in self.table_lines(max_rows):
            if not all(letter.isprintable() or letter.isspace() for letter in text):
                return InputError(f"{self.path}, line {number}: it is not text. Get the file again.")
            parts = text.split(self.delimiter)
            for part in parts:
                if not is_number(part):
                    return InputError(
                        f"{self.path}, line {number}: {part[:_MAX_QUOTED]!r} is no number. Correct the line."
                    )
            width = width or len(parts)
            if len(parts) != width:
                return InputError(
                    f"{self.path}, line {number}: it has {len(parts)} numbers and those before it {width}. "
                    "Correct the line, or get the file again."
                )
        return InputError(f"{self.path} holds no table of numbers. Get the file again.")


def is_number(text: str) -> bool:
    """Return True if a text is a number, nan and inf included."""
    try:
        float(text)
    except ValueError:
        return False
    # Python reads "1_000" as a number, but no table means one by it.
    return "_" not in text


def is_like_number(text: str) -> bool:
    """Return True if a text begins like a number, in the digits of any script, whatever follows."""
    with suppress(UnicodeError):
        # Files are read as Latin-1.
        text = text.encode("latin-1").decode("utf-8")
    seen = "".join(letter for letter in text if letter.isprintable())
    return _LIKE_NUMBER.match(seen) is not None


def parse_count(path: Path, number: int, text: str) -> int:
    """Parse the digits of a count on a line; raises InputError if there are more than any count has."""
    if len(text) > _MAX_DIGITS:
        raise InputError(f"{path}, line {number}: a count has {len(text):,} digits. Get the file again.")
    return int(text)


def open_text(path: Path, start: int = 0) -> TextIO:
    """Open a text from byte `start` on, after its byte order mark if it has one there."""
    file = path.open("rb")
    file.seek(start)
    if start or file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(start)
    # Latin-1 decodes any bytes: numbers are ASCII in every usual encoding, and comments are skipped.
    return io.TextIOWrapper(file, encoding="latin-1")


def read_lines(file: TextIO, path: Path, comments: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of every line; of a very long comment only the beginning.

    Raises InputError for any other line as long, as in a binary file, where a line may have gigabytes.
    """
    number = first
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE and not line.endswith("\n"):
            if not comments or not (comments in line or line.lstrip().startswith("//")):
                raise InputError(
                    f"{path}, line {number}: it has more than {_MAX_LINE:,} letters, so it is no row of numbers. Check "
                    "the file's suffix."
                )
            while (rest := file.readline(_MAX_LINE)) and not rest.endswith("\n"):
                pass
        yield number, line
        number += 1


def missing_vertices_error(path: Path, promised: int, found: str) -> InputError:
    """Return the error that a file has fewer vertices than its header promises."""
    return InputError(f"{path}: its header promises {promised:,} vertices and the file {found}. Get it again.")


def check_point_count(path: Path, count: int, max_points: int) -> None:
    """Refuse more than `max_points` points, before anything is allocated for them; raises InputError."""
    if count > max_points:
        raise InputError(
            f"{path} has too many points: at most {max_points:,} are read. Thin it out or raise "
            "model.source.max_points."
        )
