"""Reader of the elements of a binary PLY, whose rows may hold lists."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from struct import Struct

import numpy as np

from vilavt_components.sources.point_cloud.columns import Numbers
from vilavt_toolkit.errors import InputError

_MAX_BLANKS = 4096
"""Bytes at the end of a file that are searched for something else than blanks."""
_LONGEST_LIST = 2**16
_MAX_WALKED = 1_000_000
"""Rows with lists of unequal lengths that are walked through one by one, which takes a second or two."""
_CHUNK = 2**20
"""Rows of equal length that are looked at in one go."""
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}


@dataclass(frozen=True)
class Property:
    """A property of an element: every row has one number of it, or a list of numbers."""

    name: str
    type: str
    """NumPy's name of the type, without the byte order."""
    count: str = ""
    """Type of a list's length; empty for a single number."""

    @property
    def least(self) -> int:
        """The shortest list: a face has corners. Where vertices are read as faces, most lists look empty."""
        return 1 if self.name.startswith("vertex_ind") else 0


@dataclass
class Element:
    """A table of a PLY file, such as its vertices."""

    name: str
    rows: int
    properties: list[Property]

    @property
    def has_lists(self) -> bool:
        """True if rows may differ in length."""
        return any(part.count for part in self.properties)


def check_walk(path: Path, element: Element) -> None:
    """Refuse to walk through very many rows one by one; raises InputError."""
    if element.rows > _MAX_WALKED:
        raise InputError(
            f"{path} has {element.rows:,} rows of {element.name!r} with lists of unequal lengths, and at most "
            f"{_MAX_WALKED:,} such rows are read. Save it without the lists."
        )


class BinaryReader:
    """Reads the elements of a binary PLY one after another."""

    def __init__(self, path: Path, file: BufferedReader, order: str) -> None:
        self.path, self.file, self.order = path, file, order
        self.end = os.fstat(file.fileno()).st_size

    def skip_element(self, element: Element) -> None:
        """Skip an element; raises InputError."""
        if not element.has_lists:
            width = self._row_dtype(element, ()).itemsize
            self._check_bytes(element, element.rows * width, width)
            self.file.seek(element.rows * width, os.SEEK_CUR)
        elif self._skip_equal_lists(element) is None:
            check_walk(self.path, element)
            self._walk(element, element.rows, None)

    def read_element(self, element: Element) -> tuple[int, Numbers]:
        """Read an element; returns its first byte and its single numbers as a structured array. Raises InputError."""
        start = self.file.tell()
        if not element.has_lists:
            return start, self._read_fixed_rows(element, self._row_dtype(element, ()), element.rows)
        lengths = self._skip_equal_lists(element)
        if lengths is not None:
            self.file.seek(start)
            return start, self._read_fixed_rows(element, self._row_dtype(element, lengths), element.rows)
        check_walk(self.path, element)
        # All types of a PLY fit into float64.
        numbers = array("d")
        self._walk(element, element.rows, numbers)
        single = [part for part in element.properties if not part.count]
        columns = np.frombuffer(numbers, dtype=np.float64).reshape(element.rows, len(single))
        table = np.empty(element.rows, dtype=[(part.name, part.type) for part in single])
        for place, part in enumerate(single):
            table[part.name] = columns[:, place]
        return start, table

    def check_rest(self, elements: Sequence[Element], last: Element) -> None:
        """Check that elements follow and then the end of the file; raises InputError. `last` was read before them."""
        for element in elements:
            # Wrong vertices show in the first rows behind them, so not all of very many rows are walked through.
            if element.has_lists and element.rows > _MAX_WALKED and self._skip_equal_lists(element) is None:
                self._walk(element, _MAX_WALKED, None)
                return
            self.skip_element(element)
            last = element
        place = self.file.tell()
        if self.file.read(_MAX_BLANKS).strip():
            raise InputError(
                f"{self.path}: its header promises {last.rows:,} rows of {last.name!r} and the data go on after "
                f"them, at byte {place:,} of {self.end:,}. Get the file again."
            )

    def _read_fixed_rows(self, element: Element, dtype: np.dtype[np.void], rows: int) -> Numbers:
        """Read rows of one length; raises InputError if the file ends before."""
        self._check_bytes(element, rows * dtype.itemsize, dtype.itemsize)
        return np.fromfile(self.file, dtype, rows) if dtype.itemsize else np.empty(rows, dtype)

    def _skip_equal_lists(self, element: Element) -> list[int] | None:
        """Skip the rows if all lists are as long as those of the first row, which are returned; else skip nothing.

        Faces are mostly all triangles.
        """
        start = self.file.tell()
        if not element.rows:
            return [0] * len(element.properties)
        lengths = self._walk(element, 1, None)
        dtype = self._row_dtype(element, lengths)
        self.file.seek(start)
        if start + element.rows * dtype.itemsize > self.end:
            return None
        lists = [part.name for part in element.properties if part.count]
        # In parts, since all rows of a large mesh would not fit into memory beside its vertices.
        for first in range(0, element.rows, _CHUNK):
            table = np.fromfile(self.file, dtype, min(_CHUNK, element.rows - first))
            if not all((table[f"{name} count"] == length).all() for name, length in zip(lists, lengths, strict=True)):
                self.file.seek(start)
                return None
        return lengths

    def _walk(self, element: Element, rows: int, numbers: array[float] | None) -> list[int]:
        """Pass over rows one by one, and add their single numbers to `numbers`; returns the lengths of the last lists.

        Raises InputError for a list that is too long, or if the file ends.
        """
        # Single numbers that stand side by side are read at once: each read costs as much as all else of a row.
        steps, read, lengths = self._row_steps(element), self.file.read, list[int]()
        for row in range(rows):
            lengths = []
            for step, part in steps:
                raw = read(step.size)
                if len(raw) < step.size:
                    raise self._truncation_error(element, row)
                values = step.unpack(raw)
                if numbers is not None:
                    numbers.extend(values if part is None else values[:-1])
                if part is not None:
                    self._skip_list(element, row, values[-1], part)
                    lengths.append(values[-1])
        return lengths

    def _skip_list(self, element: Element, row: int, length: int, part: Property) -> None:
        """Skip the items of a list; raises InputError if its length cannot be, or if the file ends in it."""
        place, size = self.file.tell(), length * int(part.type[1])
        if not part.least <= length <= _LONGEST_LIST:
            raise InputError(
                f"{self.path}, byte {place:,}: the list here cannot have {length:,} numbers. Get the file again."
            )
        # Seeking past the end would succeed, and the error would come later without a row.
        if place + size > self.end:
            raise self._truncation_error(element, row)
        self.file.seek(size, os.SEEK_CUR)

    def _row_steps(self, element: Element) -> list[tuple[Struct, Property | None]]:
        """Split a row into single numbers with the length of the list behind them, and the property of that list.

        Behind the last list there is no length, and no property.
        """
        steps, codes = list[tuple[Struct, Property | None]](), ""
        for part in element.properties:
            codes += _CODES[part.count or part.type]
            if part.count:
                steps.append((Struct(self.order + codes), part))
                codes = ""
        return [*steps, (Struct(self.order + codes), None)] if codes else steps

    def _check_bytes(self, element: Element, count: int, width: int) -> None:
        """Raise InputError if the file has fewer than `count` bytes more, for rows of `width` bytes."""
        left = self.end - self.file.tell()
        if count > left:
            raise self._truncation_error(element, left // max(1, width))

    def _row_dtype(self, element: Element, lengths: Sequence[int]) -> np.dtype[np.void]:
        """Return the NumPy type of a row whose lists have these lengths."""
        fields, given = list[tuple[str, str] | tuple[str, str, tuple[int]]](), iter(lengths)
        for part in element.properties:
            if part.count:
                fields.append((f"{part.name} count", f"{self.order}{part.count}"))
                fields.append((part.name, f"{self.order}{part.type}", (next(given),)))
            else:
                fields.append((part.name, f"{self.order}{part.type}"))
        return np.dtype(fields)

    def _truncation_error(self, element: Element, row: int) -> InputError:
        return InputError(
            f"{self.path}: its header promises {element.rows:,} rows of {element.name!r} and the data end at byte "
            f"{self.end:,}, in row {row:,}. Get the file again."
        )
