"""Readers of point clouds in plain text: tables of numbers (xyz, txt, csv, pts), and the vertices of OFF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vilavt_components.sources.point_cloud.columns import (
    Numbers,
    PointColumns,
    PointTable,
    check_point_count,
    is_like_number,
    is_number,
    missing_vertices_error,
    open_text,
    parse_count,
    read_lines,
)
from vilavt_components.sources.point_cloud.names import normalise_name
from vilavt_toolkit.errors import InputError

_OFF = re.compile(r"(?P<texture>ST)?(?P<colour>C)?(?P<normal>N)?(?P<other>4?n?)OFF(?P<rest>.*)")
_BETWEEN = re.compile(r"[\s,;]+")


class _Line(NamedTuple):
    """A line of a text."""

    number: int
    text: str
    """The part of a line that is no comment."""
    comment: str


class NamedTable(NamedTuple):
    """A table of numbers with what its file says about it."""

    numbers: Numbers
    """[N, columns]"""
    rows: PointTable
    names: list[str] | None
    """Names of the columns; None if no line has them."""


def read_xyz(path: Path, max_points: int) -> NamedTable:
    """Read a table of numbers, one point a line; raises InputError.

    Numbers are separated by blanks, commas or semicolons. Comments (# or //) are skipped, and so is one line before
    the table that counts its points or names its columns.
    """
    counted, header, first = None, None, None
    comments: list[str] = []
    for line in _read_text(path):
        parts = _BETWEEN.split(line.text.strip(" \t,;"))
        if not line.text:
            comments.append(line.comment)
        # A single number on the first line is the count of points (pts), words are the names of the columns (csv).
        elif counted is None and header is None and len(parts) == 1 and parts[0].isdecimal():
            counted = parse_count(path, line.number, parts[0])
        elif counted is None and header is None and not any(is_number(part) for part in parts):
            # 1d0 and the digits of other scripts: the line would be dropped as names of columns.
            if all(is_like_number(part) for part in parts):
                raise InputError(f"{path}, line {line.number}: {parts[0][:30]!r} is no number. Correct the line.")
            header = line
        else:
            first = line
            break
    if first is None:
        raise InputError(f"{path} has no points. Give another cloud.")
    delimiter = next((mark for mark in ",;" if mark in first.text), None)
    rows = PointTable(path, skipped_lines=first.number - 1, delimiter=delimiter)
    table = rows.read_numbers(max_points)
    if counted is not None and counted != len(table):
        raise InputError(
            f"{path}: its first line promises {counted:,} points and it has {len(table):,}. Get the file again."
        )
    return NamedTable(table, rows, _find_names(path, header, comments, delimiter, table.shape[1]))


def _find_names(
    path: Path, header: _Line | None, comments: list[str], delimiter: str | None, width: int
) -> list[str] | None:
    """Return the names of the columns from the line before the table, or from a comment with x, y and z."""
    if header is not None:
        names = _split_names(header.text, delimiter)
        if len(names) == width:
            return names
        # Anything else is a title.
        if {"x", "y", "z"} <= {normalise_name(name) for name in names}:
            raise InputError(
                f"{path}, line {header.number}: it names {len(names)} columns and the rows have {width}. Correct the "
                "line."
            )
        return None
    for comment in reversed(comments):
        names = _split_names(comment, delimiter)
        if len(names) == width and {"x", "y", "z"} <= {normalise_name(name) for name in names}:
            return names
    return None


def _split_names(text: str, delimiter: str | None) -> list[str]:
    if delimiter is not None and delimiter in text:
        return text.strip().split(delimiter)
    return _BETWEEN.split(text.strip(" \t\r\n,;"))


def read_off(path: Path, max_points: int) -> PointColumns:
    """Read the vertices of an ascii OFF, with normals (NOFF) and colours (COFF) if it has them; raises InputError."""
    lines = (line for line in _read_text(path) if line.text)
    first = next(lines, _Line(0, "", ""))
    match = _OFF.match(first.text)
    if match is None:
        raise InputError(f"{path} is no OFF file: it does not begin with OFF. Check its suffix.")
    if match["other"] or match["rest"].split()[:1] == ["BINARY"]:
        raise InputError(
            f"{path}, line {first.number}: {first.text[:20]!r} is a kind of OFF that cannot be read. Save it as PLY."
        )
    # The counts are on the first line after OFF, or on the next line.
    counts, number = match["rest"].split(), first.number
    if not counts:
        second = next(lines, _Line(number, "", ""))
        counts, number = second.text.split(), second.number
    if not counts or not counts[0].isdecimal():
        raise InputError(f"{path}, line {number}: the number of vertices is missing here. Get the file again.")
    count = parse_count(path, number, counts[0])
    check_point_count(path, count, max_points)
    faces = parse_count(path, number, counts[1]) if len(counts) > 1 and counts[1].isdecimal() else None
    rows = PointTable(path, skipped_lines=number, row_count=count, rows_after=faces)
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


def _read_text(path: Path) -> Iterator[_Line]:
    """Yield the lines of a text that are not empty; raises InputError for a file that is no text."""
    with open_text(path) as file:
        for number, line in read_lines(file, path, "#"):
            if "\0" in line:
                raise InputError(f"{path}, line {number}: it is not text. Check the file's suffix.")
            text, _, comment = line.partition("#")
            text = text.strip()
            if text.startswith("//"):
                text, comment = "", text[2:]
            if text or comment:
                yield _Line(number, text, comment.strip())
