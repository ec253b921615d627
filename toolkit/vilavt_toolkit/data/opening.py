"""Rows of data files: JSON lines found by their place in the file, JSON lists read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from vilavt_toolkit.data.fields import _BOM
from vilavt_toolkit.data.rows import _PROBED, JsonLines, JsonList, Rows
from vilavt_toolkit.errors import InputError


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
    from vilavt_toolkit.data.shards import Shard, is_shard

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
