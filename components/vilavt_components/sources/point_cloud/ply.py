"""Reader of point clouds in PLY: ASCII, or binary in either byte order; lists and other elements are skipped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from vilavt_components.sources.point_cloud.columns import (
    Numbers,
    PointColumns,
    PointTable,
    check_point_count,
    is_number,
    missing_vertices_error,
    parse_count,
)
from vilavt_toolkit.errors import InputError

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_NAMES = {
    "xyz": (("x", "y", "z"),),
    "colour": (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")),
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
}
_LONGEST_LINE, _HEADER_LINES = 4096, 1000
_LONGEST_LIST, _MOST_ROWS = 2**16, 2**40


@dataclass(frozen=True)
class Property:
    """A property of an element: every row has one number of it, or a list of numbers."""

    name: str
    type: str
    """NumPy's name of the type, without the byte order."""
    count: str = ""
    """Type of a list's length; empty for a single number."""


@dataclass
class Element:
    """A table of a PLY file, such as its vertices."""

    name: str
    rows: int
    properties: list[Property]

    @property
    def has_lists(self) -> bool:
        """True if rows may differ in length."""
        return any(part.count for part in self.properties)


@dataclass(frozen=True)
class Header:
    """The header of a PLY file."""

    order: str
    """NumPy's sign of the byte order; empty for ASCII."""
    elements: list[Element]
    lines: int


def read_ply(path: Path, max_points: int) -> PointColumns:
    """Read the vertices of a PLY, with colours and normals if it has them; raises InputError naming line or byte."""
    with path.open("rb") as file:
        header = _read_header(path, file)
        names = [element.name for element in header.elements]
        if "vertex" not in names:
            raise InputError(f"{path} has no vertices, only {', '.join(names) or 'a header'}. Give another cloud.")
        place = names.index("vertex")
        before, vertex = header.elements[:place], header.elements[place]
        check_point_count(path, vertex.rows, max_points)
        chosen = _find_properties(path, vertex)
        if not header.order:
            return _read_text_vertices(path, header, before, vertex, chosen)
        reader = _BinaryReader(path, file, header.order)
        for element in before:
            reader.skip_element(element)
        start, table = reader.read_element(vertex)
        # The other elements are skipped rather than ignored: bytes missing or left over at the end of the file show
        # that the header is wrong, perhaps about the vertices.
        for element in header.elements[header.elements.index(vertex) + 1 :]:
            reader.skip_element(element)
        reader.check_end(header.elements[-1])

        def describe_vertex(index: int) -> str:
            return f"vertex {index}" if vertex.has_lists else f"byte {start + index * table.itemsize}"

        parts = {kind: np.stack([table[name] for name in found], axis=1) for kind, found in chosen.items()}
        return PointColumns(parts["xyz"], parts.get("colour"), parts.get("normal"), describe_vertex)


# --- Header -----------------------------------------------------------------------------------------


def _read_header(path: Path, file: BufferedReader) -> Header:
    """Read the header and leave the file at the beginning of its data."""
    order, elements = None, list[Element]()
    if file.readline(_LONGEST_LINE).strip() != b"ply":
        raise InputError(f"{path} is no PLY file: it does not begin with 'ply'. Check its suffix.")
    for number in range(2, _HEADER_LINES):
        raw = file.readline(_LONGEST_LINE)
        words = raw.decode("latin-1").split()
        if not raw:
            break
        if words == ["end_header"]:
            if order is None:
                raise InputError(f"{path}, line {number}: the header names no format. Get the file again.")
            return Header(order, elements, number)
        if words and words[0] == "format":
            order = _ORDERS.get(words[1]) if words[1:] else None
            if order is None:
                raise InputError(
                    f"{path}, line {number}: format {' '.join(words[1:])[:30]!r} is unknown. Save it again."
                )
        elif words and words[0] in ("element", "property"):
            _add_declaration(path, number, words, elements)
        # Comments, obj_info and unknown lines say nothing about points.
    raise InputError(f"{path}: its header has no end (end_header). Get the file again.")


def _add_declaration(path: Path, number: int, words: list[str], elements: list[Element]) -> None:
    """Add the element that a header line declares, or the property to the last element; raises InputError."""
    match words:
        case ["element", name, rows] if rows.isdecimal():
            elements.append(Element(name, int(rows), []))
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
    if len(set(names)) < len(names) or elements[-1].rows > _MOST_ROWS:
        raise InputError(
            f"{path}, line {number}: {' '.join(words)[:60]!r} repeats a name or has too many rows. Get the file again."
        )


def _find_properties(path: Path, vertex: Element) -> dict[str, tuple[str, ...]]:
    """Find the properties of coordinates, colours and normals by their usual names; raises InputError."""
    single = [part.name for part in vertex.properties if not part.count]
    chosen = dict[str, tuple[str, ...]]()
    for kind, choices in _NAMES.items():
        found = next((names for names in choices if set(names) <= set(single)), None)
        if found is not None:
            chosen[kind] = found
    if "xyz" not in chosen:
        raise InputError(f"{path}: its vertices have no x, y, z, only {', '.join(single) or 'nothing'}. Save it again.")
    return chosen


# --- Data -------------------------------------------------------------------------------------------


class _BinaryReader:
    """Reads the elements of a binary PLY one after another."""

    def __init__(self, path: Path, file: BufferedReader, order: str) -> None:
        self.path, self.file, self.order = path, file, order
        self.end = os.fstat(file.fileno()).st_size

    def skip_element(self, element: Element) -> None:
        """Skip an element."""
        self._read_rows(element, keep=False)

    def read_element(self, element: Element) -> tuple[int, Numbers]:
        """Read an element; returns its first byte and its rows as a structured array."""
        start = self.file.tell()
        table = self._read_rows(element, keep=True)
        assert table is not None
        return start, table

    def check_end(self, element: Element) -> None:
        """Refuse a file that goes on after its last element, except with blanks; raises InputError."""
        place = self.file.tell()
        if self.file.read(_LONGEST_LINE).strip():
            raise InputError(
                f"{self.path}: its header promises {element.rows:,} rows of {element.name!r} and the data go on after "
                f"them, at byte {place:,} of {self.end:,}. Get the file again."
            )

    def _read_rows(self, element: Element, keep: bool) -> Numbers | None:
        # From fast to slow: rows of one length are read in one go, others number by number.
        if not element.has_lists:
            return self._read_fixed_rows(element, self._row_dtype(element, ()), keep)
        table = self._read_equal_lists(element)
        return table if table is not None else self._read_row_by_row(element, keep)

    def _read_fixed_rows(self, element: Element, dtype: np.dtype[np.void], keep: bool) -> Numbers | None:
        start, needed = self.file.tell(), element.rows * dtype.itemsize
        if start + needed > self.end:
            raise self._truncation_error(element, (self.end - start) // dtype.itemsize)
        if not keep:
            self.file.seek(needed, os.SEEK_CUR)
            return None
        return np.fromfile(self.file, dtype, element.rows) if dtype.itemsize else np.empty(element.rows, dtype)

    def _read_equal_lists(self, element: Element) -> Numbers | None:
        """Read the rows if all lists are as long as those of the first row; else read nothing and return None."""
        start = self.file.tell()
        if not element.rows:
            return np.empty(0, self._row_dtype(element, [0] * len(element.properties)))
        # Faces are mostly all triangles: then every row is as long as the first one.
        lengths = self._read_row(element, 0)[1]
        dtype = self._row_dtype(element, lengths)
        self.file.seek(start)
        if start + element.rows * dtype.itemsize > self.end:
            return None
        table = np.fromfile(self.file, dtype, element.rows)
        lists = [part.name for part in element.properties if part.count]
        if all((table[f"{name} count"] == length).all() for name, length in zip(lists, lengths, strict=True)):
            return table
        self.file.seek(start)
        return None

    def _read_row_by_row(self, element: Element, keep: bool) -> Numbers | None:
        single = [(part.name, f"{self.order}{part.type}") for part in element.properties if not part.count]
        rows = []
        for row in range(element.rows):
            values, _ = self._read_row(element, row)
            if keep:
                rows.append(values)
        return np.array(rows, dtype=single) if keep else None

    def _read_row(self, element: Element, row: int) -> tuple[tuple[float, ...], list[int]]:
        """Read the next row; returns its single numbers and the lengths of its lists."""
        values, lengths = list[float](), list[int]()
        for part in element.properties:
            if part.count:
                length = int(self._read_number(part.count, element, row))
                if not 0 <= length <= _LONGEST_LIST:
                    at = self.file.tell() - np.dtype(part.count).itemsize
                    raise InputError(
                        f"{self.path}, byte {at}: a list cannot have {length:,} numbers. Get the file again."
                    )
                lengths.append(length)
                step = length * np.dtype(part.type).itemsize
                # Seeking past the end would succeed, and the error would come later without a row.
                if self.file.tell() + step > self.end:
                    raise self._truncation_error(element, row)
                self.file.seek(step, os.SEEK_CUR)
            else:
                values.append(self._read_number(part.type, element, row))
        return tuple(values), lengths

    def _read_number(self, kind: str, element: Element, row: int) -> float:
        dtype = np.dtype(f"{self.order}{kind}")
        raw = self.file.read(dtype.itemsize)
        if len(raw) < dtype.itemsize:
            raise self._truncation_error(element, row)
        number: float = np.frombuffer(raw, dtype)[0]
        return number

    def _row_dtype(self, element: Element, lengths: list[int] | tuple[()]) -> np.dtype[np.void]:
        """Return the NumPy type of a row whose lists have these lengths."""
        fields, given = list[tuple[str, str] | tuple[str, str, tuple[int]]](), iter(lengths)
        for part in element.properties:
            if part.count:
                fields.append((f"{part.name} count", f"{self.order}{part.count}"))
                fields.append((part.name, f"{self.order}{part.type}", (next(given),)))
            else:
                fields.append((part.name, f"{self.order}{part.type}"))
        return np.dtype(fields)

    def _truncation_error(self, element: Element, row: int) -> InputError:
        return InputError(
            f"{self.path}: its header promises {element.rows:,} rows of {element.name!r} and the data end at byte "
            f"{self.end:,}, in row {row:,}. Get the file again."
        )


def _read_text_vertices(
    path: Path, header: Header, before: list[Element], vertex: Element, chosen: dict[str, tuple[str, ...]]
) -> PointColumns:
    """Read the vertices of an ASCII PLY, one row a line."""
    skip = header.lines + sum(element.rows for element in before)
    rows = PointTable(path, skip, vertex.rows, comments=None, ends_file=vertex is header.elements[-1])
    names = [part.name for part in vertex.properties]
    if vertex.has_lists:
        table, names = (
            _read_ragged_rows(path, rows, vertex),
            [part.name for part in vertex.properties if not part.count],
        )
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
    """Convert colours read from text, [rows, 3], to the integer type of the header; raises InputError."""
    limits = np.iinfo(kind)
    wrong = ~((part >= limits.min) & (part <= limits.max)).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{path}, {rows.describe_row(int(wrong.argmax()))}: a colour is not from {limits.min} to {limits.max}, "
            "as the header says. Get the file again."
        )
    return part.astype(kind)


def _read_ragged_rows(path: Path, rows: PointTable, vertex: Element) -> Numbers:
    """Read the single numbers of every row, [rows, numbers], where some properties are lists."""
    found = []
    for number, text in rows.table_lines(vertex.rows):
        words, values = text.split(), list[float]()
        good = all(is_number(word) for word in words)
        for part in vertex.properties:
            if good and part.count and words and words[0].isdecimal():
                # A list: its length, then as many numbers, which are skipped.
                words = words[1 + parse_count(path, number, words[0]) :]
            elif good and not part.count and words:
                values.append(float(words.pop(0)))
            else:
                good = False
        if not good or words:
            raise InputError(
                f"{path}, line {number}: it is not a row of vertices as the header declares. Get the file again."
            )
        found.append(values)
    if len(found) < vertex.rows:
        raise missing_vertices_error(path, vertex.rows, f"has {len(found):,} lines of them")
    return np.array(found, dtype=np.float64)
