"""The columns that every reader of point clouds returns, and tables of numbers in text files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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
_BYTE_ORDER_MARK = "\xef\xbb\xbf"
"""The byte order mark that some spreadsheets write, as it looks in Latin-1."""


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
    skipped_lines: int = 0
    """Lines before the table."""
    row_count: int | None = None
    """Number of rows; None: all lines that follow."""
    comments: str | None = "#"
    delimiter: str | None = None
    """The character between two numbers; None: blanks."""
    ends_file: bool = False
    """True if the file must end with the table's last row."""

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
        """Yield (line number, text) of at most `max_rows` + 1 rows; raises InputError for a line after them."""
        # One more than allowed, so that `check_point_count` sees that there are too many.
        numbered = self.numbered_lines()
        yield from islice(numbered, max_rows + 1 if self.row_count is None else self.row_count)
        after = next(numbered, None) if self.ends_file else None
        if after is not None:
            raise InputError(
                f"{self.path}, line {after[0]}: the header promises {self.row_count:,} vertices and more follow. "
                "Get the file again."
            )

    def describe_row(self, index: int) -> str:
        """Say on which line a row is."""
        number = next(islice((number for number, _ in self.numbered_lines()), index, None), None)
        return f"row {index}" if number is None else f"line {number}"

    def numbered_lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines of the table as (line number from 1, text), without comments and empty lines."""
        with open_text(self.path) as file:
            for number, line in islice(enumerate(file, 1), self.skipped_lines, None):
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


def parse_count(path: Path, number: int, text: str) -> int:
    """Parse the digits of a count on a line; raises InputError if there are more than any count has."""
    if len(text) > _MAX_DIGITS:
        raise InputError(f"{path}, line {number}: a count has {len(text):,} digits. Get the file again.")
    return int(text)


def open_text(path: Path) -> TextIO:
    """Open a text after its byte order mark, if it has one."""
    # Latin-1 decodes any bytes: numbers are ASCII in every usual encoding, and comments are skipped.
    file = path.open(encoding="latin-1")
    if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
        file.seek(0)
    return file


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
