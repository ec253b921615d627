"""Tables of text: a line of column names, then one row a line, found by its offset in the file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vilavt_toolkit.data.fields import LONE_CR, SAVE_WITH_LF, BadRow, decode_utf8, tell_repeated_key
from vilavt_toolkit.data.rows import MOST_ROW_BYTES, OffsetRows
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.json_objects import RepeatedKey, load_unambiguous
from vilavt_toolkit.utils.text import shorten_text

_DELIMITERS = (",", "\t", ";")
_SUFFIXES = frozenset({".csv", ".tsv"})
_TEXTS = frozenset({"id", "question", "answer", "kind"})
"""Columns whose cells are text even if they look like JSON."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def detect_delimiter(path: Path, start: bytes) -> str | None:
    """Return what separates the columns of a table of text, or None if `start`, its first bytes, begins no table."""
    first = next((line for line in start.decode(errors="replace").splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        if "question" in _split_names(first, delimiter):
            return delimiter
    if path.suffix.lower() not in _SUFFIXES:
        return None
    return max(_DELIMITERS, key=first.count)


def _split_names(line: str, delimiter: str) -> list[str]:
    cells = next(csv.reader([line.removeprefix("\ufeff")], delimiter=delimiter), [])
    return [cell.strip() for cell in cells]


class CsvTable(OffsetRows):
    """A table of text. A cell that is empty is missing, and one that begins as JSON is read as JSON.

    Columns A, B, C, ... are options.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter
        # The module's own limit, of the whole process, is smaller than a picture in base64.
        csv.field_size_limit(MOST_ROW_BYTES)
        with path.open("rb") as file:
            source = _CountedLines(file)
            reader = csv.reader(source, delimiter=delimiter)
            try:
                self._names = [name.strip() for name in next(reader, [])]
                self._index_rows(reader, source)
            except BadRow as problem:
                raise InputError(f"{path}, line {source.number} {problem}") from None
            except csv.Error as error:
                raise InputError(f"{path}, line {source.number} {_tell_csv_error(error)}") from None
        twice = next((name for name in self._names if name and self._names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{path}: two columns are called '{twice[:60]}'. Rename one.")

    def _index_rows(self, reader: Iterator[list[str]], source: _CountedLines) -> None:
        while True:
            # A row may have several lines, so where it begins is noted before it is read.
            offset, number = source.offset, source.number + 1
            row = next(reader, None)
            if row is None:
                return
            if any(cell.strip() for cell in row):
                self._offsets.append(offset)
                self._lines.append(number)

    def _read_at(self, file: BinaryIO, index: int) -> Any:
        file.seek(self._offsets[index])
        try:
            cells = next(csv.reader(_CountedLines(file), delimiter=self._delimiter), [])
        except csv.Error as error:
            raise BadRow(_tell_csv_error(error)) from None
        if len(cells) != len(self._names):
            raise BadRow(
                f"has {len(cells)} columns, and the first line names {len(self._names)}. Put cells with "
                f"{self._delimiter!r} or quotes into quotes."
            )
        return _build_row(self._names, cells)


def _tell_csv_error(error: csv.Error) -> str:
    """Say what is wrong with a line that the module csv refuses, and what to do."""
    # Its own words for this one are about Python's `open`.
    if str(error).startswith("new-line character"):
        return f"{LONE_CR} {SAVE_WITH_LF}"
    return f"is no row of a table ({error}). Look for a quote that is not closed."


class _CountedLines:
    """The lines of a file as text, with the offset and the number of what was read so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.offset, self.number = file, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MOST_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.offset += len(line)
        self.number += 1
        if len(line) > MOST_ROW_BYTES:
            raise BadRow(f"is longer than {MOST_ROW_BYTES:,} bytes. Put its pictures into files, or remove it.")
        return decode_utf8(line)


def _build_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    row = {
        name: _read_cell(name, cell)
        for name, cell in zip(names, cells, strict=True)
        if name and cell.strip()  # a column without a name is the numbering that some libraries write
    }
    if "options" not in row and {"A", "B"} <= row.keys():
        letters = [letter for letter in _LETTERS if letter in row]
        row["options"] = {letter: row.pop(letter) for letter in letters}
    return row


def _read_cell(name: str, cell: str) -> Any:
    """Return the list, object, whole number or truth value in a cell, or its text; raises BadRow."""
    if name in _TEXTS:
        return cell
    try:
        value = load_unambiguous(cell)
    except RepeatedKey as error:
        raise BadRow(f"column '{shorten_text(name, 60)}' {tell_repeated_key(error)}") from None
    except (ValueError, RecursionError):
        return cell
    is_setting = isinstance(value, bool) or (isinstance(value, int) and name.startswith("max_"))
    return value if isinstance(value, list | dict) or is_setting else cell
