"""Opening data files: the format is detected from the content, except that tar shards go by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from vilavt_toolkit.data.fields import UTF8_BOM
from vilavt_toolkit.data.rows import JsonLines, JsonList, Rows
from vilavt_toolkit.data.shards import Shard, is_shard
from vilavt_toolkit.errors import InputError

_PROBED_BYTES = 1 << 26
"""Bytes read to tell whether a file is one JSON object over many lines."""


def open_rows(path: Path) -> Rows:
    """Open a data file, whatever it is called: a JSON list, JSON lines, or a tar shard; raises InputError."""
    try:
        rows = _open_by_content(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the path of the data file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its permissions.") from error
    if not len(rows):
        raise InputError(f"{path} holds no samples. Give another file.")
    return rows


def _open_by_content(path: Path) -> Rows:
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give a file: a JSON list, JSON lines, or a tar shard.")
    if is_shard(path):
        return Shard(path)
    with path.open("rb") as file:
        # A start of this length tells a text from an image or an archive, which have zero bytes early.
        start = file.read(4096)
        if b"\0" in start:
            raise InputError(f"{path} is no text file. Give a JSON list, JSON lines, or a tar shard.")
        if start.removeprefix(UTF8_BOM).lstrip()[:1] == b"[":
            return JsonList(path)
        _refuse_single_object(path, file)
    return JsonLines(path)


def _refuse_single_object(path: Path, file: BinaryIO) -> None:
    """Raise InputError for one JSON object that is written over many lines.

    Read as JSON lines, it would give one problem for each of its lines, none of which says what is wrong.
    """
    file.seek(0)
    first = next((line for line in file if line.strip()), b"")
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
