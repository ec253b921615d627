"""Readers of point clouds in plain text: xyz tables, and the vertices of OFF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vilavt_components.sources.point_cloud.columns import (
    Columns,
    Numbers,
    Rows,
    check_count,
    is_number,
    open_text,
    short,
    whole,
)
from vilavt_toolkit.errors import InputError

_OFF = re.compile(r"(?P<texture>ST)?(?P<colour>C)?(?P<normal>N)?(?P<other>4?n?)OFF(?P<rest>.*)")
_HEADER_LINES = 1000
"""Lines looked through for where a table begins."""


def read_xyz(path: Path, most: int) -> tuple[Numbers, Rows]:
    """Read a table of numbers, one point a line: [N, columns] and where it stands in the file; raises InputError.

    Between numbers stand blanks, commas or semicolons. Comments (# or //), and one line before the table that counts
    its points or names its columns, are passed over.
    """
    skip, counted, delimiter = 0, None, None
    for number, line in _content(path):
        parts = re.split(r"[\s,;]+", line.strip(" \t,;"))
        numbers = [is_number(part) for part in parts]
        if counted is None and skip == 0 and len(parts) == 1 and parts[0].isdecimal():
            skip, counted = number, whole(path, number, parts[0])
        elif skip == 0 and not any(numbers):
            skip = number
        else:
            skip = number - 1
            delimiter = next((mark for mark in ",;" if mark in line), None)
            break
    else:
        raise InputError(f"{path} has no points; give another cloud.")
    rows = Rows(path, skip, delimiter=delimiter)
    table = rows.read(most)
    if counted is not None and counted != len(table):
        raise InputError(
            f"{path}: its first line promises {counted:,} points and it has {len(table):,}; get the file again."
        )
    return table, rows


def read_off(path: Path, most: int) -> Columns:
    """Read the vertices of an ascii OFF, with normals (NOFF) and colours (COFF) if it has them; raises InputError."""
    lines = _content(path)
    number, first = next(lines, (0, ""))
    match = _OFF.match(first)
    if match is None:
        raise InputError(f"{path} is no OFF file: it does not begin with OFF; check its suffix.")
    if match["other"] or match["rest"].split()[:1] == ["BINARY"]:
        raise InputError(f"{path}, line {number}: {first[:20]!r} is a kind of OFF that is not read; save it as PLY.")
    # The counts stand behind OFF or on the next line.
    counts = match["rest"].split()
    if not counts:
        number, second = next(lines, (number, ""))
        counts = second.split()
    if not counts or not counts[0].isdecimal():
        raise InputError(f"{path}, line {number}: the number of vertices should stand here; get the file again.")
    count = whole(path, number, counts[0])
    check_count(path, count, most)
    # Without faces nothing follows the vertices.
    rows = Rows(path, number, count, last=counts[1:2] == ["0"])
    return _vertices(path, rows, rows.read(most), match["normal"] is not None, match["colour"] is not None)


def _vertices(path: Path, rows: Rows, table: Numbers, normal: bool, colour: bool) -> Columns:
    """Split a table of vertices: coordinates, normals, colours, and whatever follows."""
    width = table.shape[1]
    if not normal and not colour:
        # Some write colours without saying so.
        colour = width in (6, 7)
    least = 3 + 3 * normal + 3 * colour
    if len(table) and width < least:
        raise short(path, rows.count or 0, f"has {width} numbers for each, not {least}")
    after = 3 + 3 * normal
    return Columns(
        table[:, :3],
        table[:, after : after + 3] if colour else None,
        table[:, 3:6] if normal else None,
        rows.line_of,
    )


def _content(path: Path) -> Iterator[tuple[int, str]]:
    """The first lines of a text with their numbers, without comments and empty ones; raises InputError for no text."""
    with open_text(path) as file:
        for number in range(1, _HEADER_LINES + 1):
            line = file.readline(10_000)
            if "\0" in line:
                raise InputError(f"{path}, line {number}: it is not text; check the file's suffix.")
            text = line.partition("#")[0].strip()
            if text and not text.startswith("//"):
                yield number, text
            if not line:
                return
