"""Rows of data files: JSON lines found by their offset in the file, JSON lists read once."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vilavt_toolkit.data.fields import BadRow, decode_utf8, locate_long_number, parse_json, tell_repeated_key
from vilavt_toolkit.data.named_originals import NamedOriginal
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.json_objects import RepeatedKey, find_repeating_item, load_unambiguous

MOST_ROW_BYTES = 1 << 28
"""Bytes of the longest row, 256 MiB, pictures in it included."""
_MOST_LIST_BYTES = 1 << 32
"""Bytes of the longest JSON list, 4 GiB, which takes several times as much memory."""
_BLANKS = b" \t\r\n\xef\xbb\xbf"


class Rows(ABC):
    """The rows of one file, in its order. The file is indexed once; a row is read when it is asked for."""

    shares_originals = True
    """True if two rows that name an original alike show the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def locate_row(self, index: int) -> str:
        """Return where a row stands, for errors: its line, or its index in a list."""

    @abstractmethod
    def read_row(self, index: int) -> Any:
        """Read a row as plain data; raises BadRow."""

    def scan_rows(self) -> Iterator[Any]:
        """Yield all rows from first to last, a BadRow in place of one that cannot be read."""
        for index in range(len(self)):
            try:
                yield self.read_row(index)
            except BadRow as problem:
                yield problem

    def resolve_original(self, index: int, original: NamedOriginal, root: Path) -> Any:
        """Return an original that a row names, as `Source.open` takes it; raises BadRow."""
        if original.content is not None:
            return EmbeddedFile(f"{original.field} of {self.path}, {self.locate_row(index)}", original.content)
        return str(root / original.name)


class JsonList(Rows):
    """A JSON file that is one list; it is in memory as a whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.stat().st_size > _MOST_LIST_BYTES:
            raise InputError(f"{path} is too long for a JSON list, which is read as a whole. Write JSON lines.")
        # A list is no sequence of lines, so an item cannot be found without parsing all before it.
        try:
            self._items: list[Any] = load_unambiguous(decode_utf8(path.read_bytes()))
        except BadRow as problem:
            raise InputError(f"{path} {problem}") from None
        except RepeatedKey as error:
            text = decode_utf8(path.read_bytes())
            line = text.count("\n", 0, find_repeating_item(text)) + 1
            raise InputError(f"{path}: the item that begins on line {line} {tell_repeated_key(error)}") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: no valid JSON ({error.msg}, column {error.colno}). Correct that line."
            ) from None
        except RecursionError:
            raise InputError(f"{path} is nested too deep to be a list of samples. Write the file again.") from None
        except ValueError:
            where = locate_long_number(decode_utf8(path.read_bytes()))
            raise InputError(f"{path}: {where}. Write it as text, or remove the sample.") from None

    def __len__(self) -> int:
        return len(self._items)

    def locate_row(self, index: int) -> str:
        return f"item {index} (counted from 0)"

    def read_row(self, index: int) -> Any:
        return self._items[index]


class OffsetRows(Rows):
    """The rows of a file of text. Only the offset and the line of each are in memory, 16 bytes.

    A subclass fills both in its `__init__`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets, self._lines = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._offsets)

    def locate_row(self, index: int) -> str:
        return f"line {self._lines[index]}"

    def read_row(self, index: int) -> Any:
        # Opened each time: forked workers would share the file's position if it were kept open.
        with self.path.open("rb") as file:
            return self._read_at(file, index)

    def scan_rows(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                try:
                    yield self._read_at(file, index)
                except BadRow as problem:
                    yield problem

    @abstractmethod
    def _read_at(self, file: BinaryIO, index: int) -> Any:
        """Read a row of the opened file; raises BadRow."""


class JsonLines(OffsetRows):
    """A file with a JSON object on every line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        offset = 0
        with path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(MOST_ROW_BYTES + 1)
                if not line:
                    break
                # A line of nothing but spaces or a byte order mark is no row, so numbers of lines are kept too.
                if line.strip(_BLANKS):
                    self._offsets.append(offset)
                    self._lines.append(number)
                # The rest of a line that is too long for a row is skipped, and the row refused when it is read.
                while len(line) > MOST_ROW_BYTES and not line.endswith(b"\n"):
                    offset += len(line)
                    line = file.readline(MOST_ROW_BYTES + 1)
                offset += len(line)

    def _read_at(self, file: BinaryIO, index: int) -> Any:
        file.seek(self._offsets[index])
        line = file.readline(MOST_ROW_BYTES + 1)
        if len(line) > MOST_ROW_BYTES:
            raise BadRow(f"is longer than {MOST_ROW_BYTES:,} bytes. Put its pictures into files, or remove it.")
        return parse_json(line)
