"""Rows of data files: JSON lines found by their place in the file, JSON lists read once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vilavt_toolkit.errors import InputError

_BOM = b"\xef\xbb\xbf"
_PROBED = 1 << 26
"""Bytes of a file that are read to see whether it is one JSON object over many lines."""


class BadRow(Exception):
    """Why a row cannot be read, and what to do."""


class Rows(ABC):
    """The rows of one file in its order. What has been counted once is not read again until it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a row stands, for errors: its line, or its index in a list."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """The row as plain data; raises BadRow."""

    def scan(self) -> Iterator[Any]:
        """All rows from first to last, a BadRow in place of one that cannot be read."""
        for index in range(len(self)):
            try:
                yield self.read(index)
            except BadRow as problem:
                yield problem

    def original(self, index: int, name: str, root: Path, decode: bool = True) -> Any:
        """What the file calls `name` in a row, as `Source.open` takes it; raises BadRow where it cannot be.

        Without `decode`, of an image inside the file no more than its header is read.
        """
        return str(root / name)


class JsonList(Rows):
    """A JSON file that is one list; it is in memory as a whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._items: list[Any] = json.loads(_text(path.read_bytes()))
        except BadRow as problem:
            raise InputError(f"{path} {problem}") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: no valid JSON ({error.msg}, column {error.colno}); mend the file."
            ) from None
        except RecursionError:
            raise InputError(f"{path} is nested too deep to be a list of samples; mend the file.") from None

    def __len__(self) -> int:
        return len(self._items)

    def place(self, index: int) -> str:
        return f"item {index} (counted from 0)"

    def read(self, index: int) -> Any:
        return self._items[index]


class JsonLines(Rows):
    """A file with a JSON object on every line; only the place of every line is in memory, 16 bytes each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets, self._lines = array("q"), array("q")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> str:
        return f"line {self._lines[index]}"

    def read(self, index: int) -> Any:
        # Opened each time: a file kept open would be shared with workers that were forked.
        with self.path.open("rb") as file:
            return self._next(file, index)

    def scan(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                try:
                    yield self._next(file, index)
                except BadRow as problem:
                    yield problem

    def _next(self, file: BinaryIO, index: int) -> Any:
        file.seek(self._offsets[index])
        return parse_json(file.readline())


def parse_json(data: bytes) -> Any:
    """One JSON value; raises BadRow with what is wrong."""
    try:
        return json.loads(_text(data))
    except json.JSONDecodeError as error:
        raise BadRow(f"is no valid JSON ({error.msg}, column {error.colno}); mend or remove it.") from None
    except RecursionError:
        raise BadRow("is nested too deep to be a sample; mend or remove it.") from None


def _text(data: bytes) -> str:
    try:
        return data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"is no UTF-8 text (byte {error.start}); convert it to UTF-8.") from None


def open_rows(path: Path) -> Rows:
    """The rows of a file, whatever it is called: a JSON list, JSON lines, or a tar shard; raises InputError."""
    try:
        rows = _opened(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path of the data file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the file.") from error
    if not len(rows):
        raise InputError(f"{path} holds no samples; give another file.")
    return rows


def _opened(path: Path) -> Rows:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file: a JSON list, JSON lines, or a tar shard.")
    from vilavt_toolkit.datafiles.shards import Shard, is_shard

    if is_shard(path):
        return Shard(path)
    with path.open("rb") as file:
        start = file.read(4096)
        if b"\0" in start:
            raise InputError(f"{path} is no text file; give a JSON list, JSON lines, or a tar shard.")
        if start.removeprefix(_BOM).lstrip()[:1] == b"[":
            return JsonList(path)
        _refuse_single_object(path, file)
    return JsonLines(path)


def _refuse_single_object(path: Path, file: BinaryIO) -> None:
    """Tell a JSON object written over many lines from JSON lines."""
    file.seek(0)
    first = next((line for line in file if line.strip()), b"")
    if not first.lstrip().startswith(b"{") or first.rstrip().endswith(b"}"):
        return
    file.seek(0)
    try:
        single = isinstance(json.loads(file.read(_PROBED)), dict)
    except (ValueError, RecursionError):
        return
    if single:
        raise InputError(
            f"{path} is one JSON object over many lines; write a list of samples, or one sample on every line."
        )
