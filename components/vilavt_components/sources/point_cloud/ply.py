"""Reader of point clouds in PLY: ASCII, or binary in either byte order; lists and other elements are skipped."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np

from vilavt_components.sources.point_cloud.columns import (
    BYTE_ORDER_MARK,
    Numbers,
    PointColumns,
    PointTable,
    check_point_count,
    is_number,
    missing_vertices_error,
    parse_count,
)
from vilavt_components.sources.point_cloud.names import Kind, find_named_columns
from vilavt_components.sources.point_cloud.ply_binary import BinaryReader, Element, Property, check_walk
from vilavt_toolkit.errors import InputError

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER, _CHUNK = 2**22, 2**16
_HEADER_END = re.compile(rb"[\r\n][ \t]*end_header[ \t]*[\r\n]")
_MAX_PROPERTIES, _MAX_ROWS = 1000, 2**40


@dataclass
class Header:
    """The header of a PLY file."""

    order: str | None = None
    """NumPy's sign of the byte order; empty for ASCII, None if no format was named yet."""
    elements: list[Element] = field(default_factory=list)
    lines: int = 0
    end: int = 0
    """First byte of the data."""


def read_ply(path: Path, max_points: int) -> PointColumns:
    """Read the vertices of a PLY, with colours and normals if it has them; raises InputError naming line or byte."""
    with path.open("rb") as file:
        header = _read_header(path, file)
        names = [element.name for element in header.elements]
        if "vertex" not in names:
            raise InputError(
                f"{path} has no vertices, only {', '.join(names)[:100] or 'a header'}. Give another cloud."
            )
        if names.count("vertex") > 1:
            raise InputError(f"{path} declares the element vertex twice. Save its points as one element.")
        place = names.index("vertex")
        before, vertex, after = header.elements[:place], header.elements[place], header.elements[place + 1 :]
        check_point_count(path, vertex.rows, max_points)
        chosen = _find_properties(path, vertex)
        if not header.order:
            return _read_text_vertices(path, header, before, vertex, after, chosen)
        file.seek(header.end)
        reader = BinaryReader(path, file, header.order)
        for element in before:
            reader.skip_element(element)
        start, table = reader.read_element(vertex)
        # The other elements are skipped rather than ignored: bytes missing or left over at the end of the file show
        # that the header is wrong, perhaps about the vertices.
        reader.check_rest(after, vertex)

        def describe_vertex(index: int) -> str:
            return f"vertex {index}" if vertex.has_lists else f"byte {start + index * table.itemsize}"

        parts = {kind: np.stack([table[name] for name in found], axis=1) for kind, found in chosen.items()}
        return PointColumns(parts["xyz"], parts.get("colour"), parts.get("normal"), describe_vertex)


# --- Header -----------------------------------------------------------------------------------------


def _read_header(path: Path, file: BufferedReader) -> Header:
    """Read the header, whose lines end with LF, CR LF or CR; raises InputError naming the line."""
    raw = b""
    while len(raw) < _MAX_HEADER and (more := file.read(_CHUNK)):
        raw += more
        if _HEADER_END.search(raw):
            break
    place = len(BYTE_ORDER_MARK) if raw.startswith(BYTE_ORDER_MARK) else 0
    begin = raw[place : place + 100]
    if begin.split()[:1] != [b"ply"]:
        raise InputError(f"{path} is no PLY file: it does not begin with 'ply'. Check its suffix.")
    # All lines end as the first one. Comments may hold the other sign, and binary data may begin with it.
    line_end = b"\n" if b"\n" in begin and b"\r" not in begin.partition(b"\n")[0][:-1] else b"\r"
    header = Header()
    while (end := raw.find(line_end, place)) >= 0:
        words = raw[place:end].decode("latin-1").split()
        header.lines, header.end, place = header.lines + 1, end + 1, end + 1
        if words == ["end_header"]:
            if header.order is None:
                raise InputError(f"{path}, line {header.lines}: the header names no format. Get the file again.")
            return header
        _add_line(path, header, words)
    raise InputError(f"{path}: its header has no end (end_header). Get the file again.")


def _add_line(path: Path, header: Header, words: list[str]) -> None:
    """Add what a line of the header says; comments, obj_info and unknown lines say nothing about points."""
    if words[:1] == ["format"]:
        if header.order is not None:
            raise InputError(f"{path}, line {header.lines}: the header names its format twice. Get the file again.")
        header.order = _ORDERS.get(words[1]) if words[1:] else None
        if header.order is None:
            raise InputError(
                f"{path}, line {header.lines}: format {' '.join(words[1:])[:30]!r} is unknown. Save it again."
            )
    elif words[:1] in (["element"], ["property"]):
        _add_declaration(path, header.lines, words, header.elements)


def _add_declaration(path: Path, number: int, words: list[str], elements: list[Element]) -> None:
    """Add the element that a header line declares, or the property to the last element; raises InputError."""
    match words:
        case ["element", name, rows] if rows.isdecimal():
            elements.append(Element(name, parse_count(path, number, rows), []))
        case ["property", "list", count, kind, name] if (
            elements and _TYPES.get(count, "f")[0] in "iu" and kind in _TYPES
        ):
            elements[-1].properties.append(Property(name, _TYPES[kind], _TYPES[count]))
        case ["property", kind, name] if elements and kind in _TYPES:
            elements[-1].properties.append(Property(name, _TYPES[kind]))
        case _:
            raise InputError(
                f"{path}, line {number}: {' '.join(words)[:60]!r} is no valid declaration. Get the file again."
            )
    # Such names and sizes would only fail later, in NumPy, without a line number.
    names = [part.name for part in elements[-1].properties]
    is_long = len(names) > _MAX_PROPERTIES or len(elements) > _MAX_PROPERTIES or elements[-1].rows > _MAX_ROWS
    if is_long or (names and names[-1] in names[:-1]):
        raise InputError(
            f"{path}, line {number}: {' '.join(words)[:60]!r} repeats a name or has too many rows. Get the file again."
        )


def _find_properties(path: Path, vertex: Element) -> dict[Kind, tuple[str, ...]]:
    """Find the properties of coordinates, colours and normals by their usual names; raises InputError."""
    single = [part.name for part in vertex.properties if not part.count]
    found = find_named_columns(single, f"{path}, element vertex,")
    if found is None:
        names = ", ".join(single)[:100]
        raise InputError(f"{path}: its vertices have no x, y, z, only {names or 'nothing'}. Save it again.")
    chosen = {kind: tuple(single[place] for place in places) for kind, places in found.items()}
    types = {part.name: part.type for part in vertex.properties}
    # The type says which value is full brightness, so one of bytes and one of fractions have no common one.
    if "colour" in chosen and len({types[name] for name in chosen["colour"]}) > 1:
        raise InputError(f"{path}: its colours {', '.join(chosen['colour'])} are of different types. Save it again.")
    return chosen


# --- Text -------------------------------------------------------------------------------------------


def _read_text_vertices(
    path: Path,
    header: Header,
    before: list[Element],
    vertex: Element,
    after: list[Element],
    chosen: dict[Kind, tuple[str, ...]],
) -> PointColumns:
    """Read the vertices of an ASCII PLY, one row a line."""
    # A row without properties is an empty line, and those are passed over.
    skipped, behind = (sum(each.rows for each in part if each.properties) for part in (before, after))
    rows = PointTable(
        path,
        header.end,
        header.lines + 1,
        skipped_rows=skipped,
        row_count=vertex.rows,
        comments=None,
        rows_after=behind,
    )
    names = [part.name for part in vertex.properties]
    if vertex.has_lists:
        check_walk(path, vertex)
        table = _read_ragged_rows(path, rows, vertex)
        names = [part.name for part in vertex.properties if not part.count]
    else:
        table = rows.read_numbers(vertex.rows)
    if len(table) and table.shape[1] != len(names):
        raise InputError(
            f"{path}, {rows.describe_row(0)}: it has {table.shape[1]} numbers and the header names {len(names)}. "
            "Get the file again."
        )
    types = {part.name: part.type for part in vertex.properties}
    parts = {}
    for kind, found in chosen.items():
        part = table[:, [names.index(name) for name in found]] if len(table) else np.empty((0, 3))
        # The type of a whole number says which value is full brightness: 255 or 65535.
        typed = kind == "colour" and types[found[0]] in ("u1", "u2")
        parts[kind] = _cast_colours(path, rows, part, types[found[0]]) if typed else part
    return PointColumns(parts["xyz"], parts.get("colour"), parts.get("normal"), rows.describe_row)


def _cast_colours(path: Path, rows: PointTable, part: Numbers, kind: str) -> Numbers:
    """Convert colours read from text, [rows, 3], to the integer type of the header; raises InputError.

    Fractions stay: some programs write 0 to 1 under a type of bytes.
    """
    limits = np.iinfo(kind)
    wrong = ~((part >= limits.min) & (part <= limits.max)).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{path}, {rows.describe_row(int(wrong.argmax()))}: a colour is not from {limits.min} to {limits.max}, "
            "as the header says. Get the file again."
        )
    if (part == np.rint(part)).all():
        return part.astype(kind)
    return part if part.max() <= 1 else part / limits.max


def _read_ragged_rows(path: Path, rows: PointTable, vertex: Element) -> Numbers:
    """Read the single numbers of every row, [rows, numbers], where some properties are lists."""
    found = []
    for number, text in rows.table_lines(vertex.rows):
        words, place, values = text.split(), 0, list[float]()
        good = all(is_number(word) for word in words)
        for part in vertex.properties:
            if good and part.count and place < len(words) and words[place].isdecimal():
                # A list: its length, then as many numbers, which are skipped.
                place += 1 + parse_count(path, number, words[place])
            elif good and not part.count and place < len(words):
                values.append(float(words[place]))
                place += 1
            else:
                good = False
        if not good or place != len(words):
            raise InputError(
                f"{path}, line {number}: it is not a row of vertices as the header declares. Get the file again."
            )
        found.append(values)
    if len(found) < vertex.rows:
        raise missing_vertices_error(path, vertex.rows, f"has {len(found):,} lines of them")
    return np.array(found, dtype=np.float64).reshape(len(found), -1)
