"""Rows of data files: JSON lines found by their place in the file, JSON lists read once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vilavt_toolkit.data.fields import BadRow, _text, parse_json
from vilavt_toolkit.errors import InputError

_PROBED = 1 << 26
"""Bytes of a file that are read to see whether it is one JSON object over many lines."""


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
