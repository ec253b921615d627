"""What every reader of point clouds gives back and complains with, and tables of numbers in text."""

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

_SHOWN = 30
"""Letters of a file that an error shows at most."""
_DIGITS = 18
"""Most digits of a count; Python itself refuses to read thousands of them."""
_MARK = "\xef\xbb\xbf"
"""A byte order mark, with which some spreadsheets begin a text, read as Latin-1."""


@dataclass(frozen=True)
class Columns:
    """What a file has of every point, in its own numbers."""

    xyz: Numbers
    """[N, 3]"""
    colour: Numbers | None
    """[N, 3]: whole numbers from 0 to the most their type holds, or others from 0 to 1, 255 or 65535."""
    normal: Numbers | None
    """[N, 3]"""
    place: Callable[[int], str]
    """Where in its file the point of an index stands, in words."""


@dataclass(frozen=True)
class Rows:
    """A table in a text file."""

    path: Path
    skip: int = 0
    """Lines before the table."""
    count: int | None = None
    """Rows of the table; None: all that follow."""
    comments: str | None = "#"
    delimiter: str | None = None
    """What stands between two numbers; None: blanks."""
    last: bool = False
    """Whether the file ends with the table, so that no line may follow its `count` rows."""

    def read(self, most: int) -> Numbers:
        """Read the table, [rows, columns]; raises InputError naming the line, also for more than `most` rows."""
        lines = (text for _, text in self.lines(most))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about no rows at all, which is said below
                # Told how many rows to read, it would allocate them all before it has seen one.
                table: Numbers = np.loadtxt(lines, comments=None, delimiter=self.delimiter, ndmin=2)
        except ValueError as error:
            raise self._complaint(most) from error
        if self.count is None:
            check_count(self.path, len(table), most)
        elif len(table) < self.count:
            raise short(self.path, self.count, f"has {len(table):,} lines of them")
        return table

    def lines(self, most: int) -> Iterator[tuple[int, str]]:
        """Its rows as lines with their numbers, one more than `most` at most; raises InputError for one too many."""
        numbered = self.numbered()
        yield from islice(numbered, most + 1 if self.count is None else self.count)
        after = next(numbered, None) if self.last else None
        if after is not None:
            raise InputError(
                f"{self.path}, line {after[0]}: the header promises {self.count:,} vertices and more follow; "
                "get the file again."
            )

    def line_of(self, index: int) -> str:
        """The line of a row, in words."""
        number = next(islice((number for number, _ in self.numbered()), index, None), None)
        return f"row {index}" if number is None else f"line {number}"

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Lines of the table with their numbers, from 1; without comments and empty ones."""
        with open_text(self.path) as file:
            for number, line in islice(enumerate(file, 1), self.skip, None):
                text = (line.partition(self.comments)[0] if self.comments else line).strip()
                if text:
                    yield number, text

    def _complaint(self, most: int) -> InputError:
        """What is wrong with the first line that is."""
        width = 0
        for number, text in self.lines(most):
            if not all(letter.isprintable() or letter.isspace() for letter in text):
                return InputError(f"{self.path}, line {number}: it is not text, as it should be; get the file again.")
            parts = text.split(self.delimiter)
            for part in parts:
                if not is_number(part):
                    return InputError(f"{self.path}, line {number}: {part[:_SHOWN]!r} is no number; correct the line.")
            width = width or len(parts)
            if len(parts) != width:
                return InputError(
                    f"{self.path}, line {number}: it has {len(parts)} numbers and those before it {width}; "
                    "correct the line, or get the file again."
                )
        return InputError(f"{self.path} holds no table of numbers; get the file again.")


def is_number(text: str) -> bool:
    """Whether a text is a number, also nan and inf."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which are Python's, not a table's


def whole(path: Path, number: int, text: str) -> int:
    """The whole number that digits on a line stand for; raises InputError for more of them than a count has."""
    if len(text) > _DIGITS:
        raise InputError(
            f"{path}, line {number}: a number of {len(text):,} digits cannot be meant here; get the file again."
        )
    return int(text)


def open_text(path: Path) -> TextIO:
    """Open a text of any encoding that has ASCII's digits, behind its byte order mark if it has one."""
    file = path.open(encoding="latin-1")
    if file.read(len(_MARK)) != _MARK:
        file.seek(0)
    return file


def short(path: Path, promised: int, found: str) -> InputError:
    """The complaint that a file has less than its header promises."""
    return InputError(f"{path}: its header promises {promised:,} vertices and the file {found}; get it again.")


def check_count(path: Path, count: int, most: int) -> None:
    """Refuse more points than are read, before anything is allocated for them; raises InputError."""
    if count > most:
        raise InputError(
            f"{path} has too many points: at most {most:,} are read; thin it out or raise model.source.max_points."
        )
