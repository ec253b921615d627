"""Readers of point clouds in plain text: tables of numbers (xyz, txt, csv, pts), and the vertices of OFF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vilavt_components.sources.point_cloud.columns import (
    Numbers,
    PointColumns,
    PointTable,
    check_point_count,
    is_number,
    missing_vertices_error,
    open_text,
    parse_count,
)
from vilavt_toolkit.errors import InputError

_OFF = re.compile(r"(?P<texture>ST)?(?P<colour>C)?(?P<normal>N)?(?P<other>4?n?)OFF(?P<rest>.*)")
_HEADER_LINES = 1000
"""Lines searched for the beginning of a table."""


def read_xyz(path: Path, max_points: int) -> tuple[Numbers, PointTable]:
    """Read a table of numbers, one point a line; returns [N, columns] and the table's place. Raises InputError.

    Numbers are separated by blanks, commas or semicolons. Comments (# or //) are skipped, and so is one line before
    the table that counts its points or names its columns.
    """
    skip, counted, delimiter = 0, None, None
    for number, line in _content_lines(path):
        parts = re.split(r"[\s,;]+", line.strip(" \t,;"))
        numbers = [is_number(part) for part in parts]
        # A single number on the first line is the count of points (pts), words are the names of the columns (csv).
        if counted is None and skip == 0 and len(parts) == 1 and parts[0].isdecimal():
            skip, counted = number, parse_count(path, number, parts[0])
        elif skip == 0 and not any(numbers):
            skip = number
        else:
            skip = number - 1
            delimiter = next((mark for mark in ",;" if mark in line), None)
            break
    else:
        raise InputError(f"{path} has no points. Give another cloud.")
    rows = PointTable(path, skip, delimiter=delimiter)
    table = rows.read_numbers(max_points)
    if counted is not None and counted != len(table):
        raise InputError(
            f"{path}: its first line promises {counted:,} points and it has {len(table):,}. Get the file again."
        )
    return table, rows


def read_off(path: Path, max_points: int) -> PointColumns:
    """Read the vertices of an ascii OFF, with normals (NOFF) and colours (COFF) if it has them; raises InputError."""
    lines = _content_lines(path)
    number, first = next(lines, (0, ""))
    match = _OFF.match(first)
    if match is None:
        raise InputError(f"{path} is no OFF file: it does not begin with OFF. Check its suffix.")
    if match["other"] or match["rest"].split()[:1] == ["BINARY"]:
        raise InputError(f"{path}, line {number}: {first[:20]!r} is a kind of OFF that cannot be read. Save it as PLY.")
    # The counts are on the first line after OFF, or on the next line.
    counts = match["rest"].split()
    if not counts:
        number, second = next(lines, (number, ""))
        counts = second.split()
    if not counts or not counts[0].isdecimal():
        raise InputError(f"{path}, line {number}: the number of vertices is missing here. Get the file again.")
    count = parse_count(path, number, counts[0])
    check_point_count(path, count, max_points)
    # A file without faces must end with its vertices, any other goes on with the faces.
    rows = PointTable(path, number, count, ends_file=counts[1:2] == ["0"])
    return _split_vertices(
        path, rows, rows.read_numbers(max_points), match["normal"] is not None, match["colour"] is not None
    )


def _split_vertices(path: Path, rows: PointTable, table: Numbers, normal: bool, colour: bool) -> PointColumns:
    """Split a table of vertices into coordinates, normals and colours; further columns are ignored."""
    width = table.shape[1]
    if not normal and not colour:
        # Some programs write colours (RGB or RGBA) under plain OFF.
        colour = width in (6, 7)
    least = 3 + 3 * normal + 3 * colour
    if len(table) and width < least:
        raise missing_vertices_error(path, rows.row_count or 0, f"has {width} numbers for each, not {least}")
    after = 3 + 3 * normal
    return PointColumns(
        table[:, :3],
        table[:, after : after + 3] if colour else None,
        table[:, 3:6] if normal else None,
        rows.describe_row,
    )


def _content_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first lines of a text as (line number, text), without comments and empty lines; raises InputError."""
    with open_text(path) as file:
        for number in range(1, _HEADER_LINES + 1):
            # With a limit, since a binary file may have no line end for gigabytes.
            line = file.readline(10_000)
            if "\0" in line:
                raise InputError(f"{path}, line {number}: it is not text. Check the file's suffix.")
            text = line.partition("#")[0].strip()
            if text and not text.startswith("//"):
                yield number, text
            if not line:
                return
