"""Opening data files: the format is detected from the content, except that tar shards go by their name."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import BinaryIO

from vilavt_toolkit.data.arrow_table import ARROW, PARQUET, ArrowTable, ParquetTable, is_saved_folder
from vilavt_toolkit.data.csv_table import CsvTable, detect_delimiter
from vilavt_toolkit.data.fields import UTF8_BOM
from vilavt_toolkit.data.rows import JsonLines, JsonList, Rows
from vilavt_toolkit.data.shards import Shard, is_shard
from vilavt_toolkit.errors import InputError

_START = 4096
"""First bytes of a file that are looked at to tell what it is."""
_GIVE = "Give a JSON list, JSON lines, a table (CSV, parquet) or a tar shard."
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}
"""The first bytes of compressed files."""
_PROBED_BYTES = 1 << 26
"""Bytes read to tell whether a file is one JSON object over many lines."""


def open_rows(path: Path) -> Rows:
    """Open a data file, whatever it is called; raises InputError.

    It is a JSON list, JSON lines, a table (CSV, parquet, Arrow), a folder of the library datasets, or a tar shard.
    """
    try:
        rows = _open_by_content(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the path of the data file.") from None
    except (OSError, ValueError) as error:  # the latter for a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}). Check its path and permissions.") from error
    if not len(rows):
        raise InputError(f"{path} holds no samples. Give another file.")
    return rows


def _open_by_content(path: Path) -> Rows:
    if path.is_dir():
        if is_saved_folder(path):
            return ArrowTable(path)
        raise InputError(f"{path} is a folder, and no data set that the library datasets saved. {_GIVE}")
    is_tar = is_shard(path)
    # A named pipe would be waited for without end, and a device may have no end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is no regular file, and rows are read more than once. {_GIVE}")
    with path.open("rb") as file:
        start = file.read(_START)
        _refuse_compressed(path, start)
        if is_tar:
            return Shard(path)
        if start.startswith(PARQUET):
            return ParquetTable(path)
        if start.startswith(ARROW) or path.suffix.lower() == ".arrow":
            return ArrowTable(path)
        _refuse_other_content(path, start)
        first = start.removeprefix(UTF8_BOM).lstrip()[:1]
        if first == b"[":
            return JsonList(path)
        delimiter = None if first == b"{" else detect_delimiter(path, start)
        if delimiter is not None:
            return CsvTable(path, delimiter)
        _refuse_single_object(path, file)
    return JsonLines(path)


def _refuse_compressed(path: Path, start: bytes) -> None:
    """Raise InputError for a compressed file, whatever it is called: rows are found by their offset."""
    packed = next((name for begin, name in _COMPRESSED.items() if start.startswith(begin)), None)
    if packed is not None:
        raise InputError(f"{path} is compressed ({packed}), so rows cannot be found by their offset. Unpack it.")


def _refuse_other_content(path: Path, start: bytes) -> None:
    """Raise InputError for a file that is not UTF-8 text by its first bytes."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16 text. Convert it to UTF-8.")
    # Images and archives have zero bytes early.
    if b"\0" in start:
        raise InputError(f"{path} is no text file. {_GIVE}")


def _refuse_single_object(path: Path, file: BinaryIO) -> None:
    """Raise InputError for one JSON object that is written over many lines.

    Read as JSON lines, it would give one problem for each of its lines, none of which says what is wrong.
    """
    file.seek(0)
    first = next((line for line in iter(lambda: file.readline(_PROBED_BYTES), b"") if line.strip()), b"")
    # A first line that is a whole object, or the beginning of none, needs no more reading.
    if not first.lstrip().startswith(b"{") or first.rstrip().endswith(b"}"):
        return
    file.seek(0)
    try:
        is_object = isinstance(json.loads(file.read(_PROBED_BYTES)), dict)
    except (ValueError, RecursionError):
        return
    if is_object:
        raise InputError(
            f"{path} is one JSON object over many lines. Write a list of samples, or one sample on every line."
        )
