"""Reader of point clouds in PLY: ascii and binary of both byte orders, lists and elements of any kind passed over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from vilavt_components.sources.point_cloud.columns import Columns, Numbers, Rows, check_count, is_number, short, whole
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
    """A number of every row of an element, or a list of them."""

    name: str
    type: str
    """NumPy's, without the byte order."""
    count: str = ""
    """Type of the length of a list; empty for a single number."""


@dataclass
class Element:
    """A table of a PLY."""

    name: str
    rows: int
    properties: list[Property]

    @property
    def has_lists(self) -> bool:
        """Whether rows may differ in length."""
        return any(part.count for part in self.properties)


@dataclass(frozen=True)
class Header:
    """What a PLY says about itself."""

    order: str
    """NumPy's byte order; empty for ascii."""
    elements: list[Element]
    lines: int


def read_ply(path: Path, most: int) -> Columns:
    """Read the vertices of a PLY, with colours and normals where it has them; raises InputError naming line or byte."""
    with path.open("rb") as file:
        header = _header(path, file)
        names = [element.name for element in header.elements]
        if "vertex" not in names:
            raise InputError(f"{path} has no vertices, only {', '.join(names) or 'a header'}; give another cloud.")
        place = names.index("vertex")
        before, vertex = header.elements[:place], header.elements[place]
        check_count(path, vertex.rows, most)
        chosen = _chosen(path, vertex)
        if not header.order:
            return _from_text(path, header, before, vertex, chosen)
        reader = _Binary(path, file, header.order)
        for element in before:
            reader.skip(element)
        start, table = reader.read(vertex)
        # Passed over too: what is left at the end, or missing, shows that the header lies of its vertices.
        for element in header.elements[header.elements.index(vertex) + 1 :]:
            reader.skip(element)
        reader.end_behind(header.elements[-1])

        def byte(index: int) -> str:
            return f"byte {start + index * table.itemsize}" if not vertex.has_lists else f"vertex {index}"

        parts = {kind: np.stack([table[name] for name in found], axis=1) for kind, found in chosen.items()}
        return Columns(parts["xyz"], parts.get("colour"), parts.get("normal"), byte)


# --- Header -----------------------------------------------------------------------------------------


def _header(path: Path, file: BufferedReader) -> Header:
    """Read the header; the file then stands at its data."""
    order, elements = None, list[Element]()
    if file.readline(_LONGEST_LINE).strip() != b"ply":
        raise InputError(f"{path} is no PLY file: it does not begin with 'ply'; check its suffix.")
    for number in range(2, _HEADER_LINES):
        raw = file.readline(_LONGEST_LINE)
        words = raw.decode("latin-1").split()
        if not raw:
            break
        if words == ["end_header"]:
            if order is None:
                raise InputError(f"{path}, line {number}: the header names no format; get the file again.")
            return Header(order, elements, number)
        if words and words[0] == "format":
            order = _ORDERS.get(words[1]) if words[1:] else None
            if order is None:
                raise InputError(
                    f"{path}, line {number}: format {' '.join(words[1:])[:30]!r} is unknown; save it anew."
                )
        elif words and words[0] in ("element", "property"):
            _declare(path, number, words, elements)
        # Comments, obj_info and what else there may be say nothing about points.
    raise InputError(f"{path}: its header has no end (end_header); get the file again.")


def _declare(path: Path, number: int, words: list[str], elements: list[Element]) -> None:
    """Add an element, or a property to the last one."""
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
            raise InputError(f"{path}, line {number}: {' '.join(words)[:60]!r} is no declaration; get the file again.")
    names = [part.name for part in elements[-1].properties]
    if len(set(names)) < len(names) or elements[-1].rows > _MOST_ROWS:
        raise InputError(f"{path}, line {number}: {' '.join(words)[:60]!r} cannot be meant; get the file again.")


def _chosen(path: Path, vertex: Element) -> dict[str, tuple[str, ...]]:
    """The names of the properties that are read, by what they are."""
    single = [part.name for part in vertex.properties if not part.count]
    chosen = dict[str, tuple[str, ...]]()
    for kind, choices in _NAMES.items():
        found = next((names for names in choices if set(names) <= set(single)), None)
        if found is not None:
            chosen[kind] = found
    if "xyz" not in chosen:
        raise InputError(f"{path}: its vertices have no x, y, z, only {', '.join(single) or 'nothing'}; save it anew.")
    return chosen


# --- Data -------------------------------------------------------------------------------------------


class _Binary:
    """Reads elements of a binary PLY one after another."""

    def __init__(self, path: Path, file: BufferedReader, order: str) -> None:
        self.path, self.file, self.order = path, file, order
        self.end = os.fstat(file.fileno()).st_size

    def skip(self, element: Element) -> None:
        """Pass over an element."""
        self._rows(element, keep=False)

    def read(self, element: Element) -> tuple[int, Numbers]:
        """Where the element begins, and its rows, structured; of lists only the length."""
        start = self.file.tell()
        table = self._rows(element, keep=True)
        assert table is not None
        return start, table

    def end_behind(self, element: Element) -> None:
        """Refuse a file that goes on behind its last element; blanks are nothing. Raises InputError."""
        place = self.file.tell()
        if self.file.read(_LONGEST_LINE).strip():
            raise InputError(
                f"{self.path}: its header promises {element.rows:,} rows of {element.name!r} and the data go on behind "
                f"them, at byte {place:,} of {self.end:,}; get the file again."
            )

    def _rows(self, element: Element, keep: bool) -> Numbers | None:
        if not element.has_lists:
            return self._plain(element, self._type(element, ()), keep)
        table = self._alike(element)
        return table if table is not None else self._one_by_one(element, keep)

    def _plain(self, element: Element, dtype: np.dtype[np.void], keep: bool) -> Numbers | None:
        start, needed = self.file.tell(), element.rows * dtype.itemsize
        if start + needed > self.end:
            raise self._cut(element, (self.end - start) // dtype.itemsize)
        if not keep:
            self.file.seek(needed, os.SEEK_CUR)
            return None
        return np.fromfile(self.file, dtype, element.rows) if dtype.itemsize else np.empty(element.rows, dtype)

    def _alike(self, element: Element) -> Numbers | None:
        """The rows where all lists are as long as those of the first; None, and nothing read, where not."""
        start = self.file.tell()
        if not element.rows:
            return np.empty(0, self._type(element, [0] * len(element.properties)))
        lengths = self._one(element, 0)[1]
        dtype = self._type(element, lengths)
        self.file.seek(start)
        if start + element.rows * dtype.itemsize > self.end:
            return None
        table = np.fromfile(self.file, dtype, element.rows)
        lists = [part.name for part in element.properties if part.count]
        if all((table[f"{name} count"] == length).all() for name, length in zip(lists, lengths, strict=True)):
            return table
        self.file.seek(start)
        return None

    def _one_by_one(self, element: Element, keep: bool) -> Numbers | None:
        single = [(part.name, f"{self.order}{part.type}") for part in element.properties if not part.count]
        rows = []
        for row in range(element.rows):
            values, _ = self._one(element, row)
            if keep:
                rows.append(values)
        return np.array(rows, dtype=single) if keep else None

    def _one(self, element: Element, row: int) -> tuple[tuple[float, ...], list[int]]:
        """The single numbers of the next row, and the lengths of its lists."""
        values, lengths = list[float](), list[int]()
        for part in element.properties:
            if part.count:
                length = int(self._number(part.count, element, row))
                if not 0 <= length <= _LONGEST_LIST:
                    at = self.file.tell() - np.dtype(part.count).itemsize
                    raise InputError(
                        f"{self.path}, byte {at}: a list of {length:,} numbers cannot be meant; get the file again."
                    )
                lengths.append(length)
                step = length * np.dtype(part.type).itemsize
                if self.file.tell() + step > self.end:
                    raise self._cut(element, row)
                self.file.seek(step, os.SEEK_CUR)
            else:
                values.append(self._number(part.type, element, row))
        return tuple(values), lengths

    def _number(self, kind: str, element: Element, row: int) -> float:
        dtype = np.dtype(f"{self.order}{kind}")
        raw = self.file.read(dtype.itemsize)
        if len(raw) < dtype.itemsize:
            raise self._cut(element, row)
        number: float = np.frombuffer(raw, dtype)[0]
        return number

    def _type(self, element: Element, lengths: list[int] | tuple[()]) -> np.dtype[np.void]:
        """The type of a row whose lists have these lengths."""
        fields, given = list[tuple[str, str] | tuple[str, str, tuple[int]]](), iter(lengths)
        for part in element.properties:
            if part.count:
                fields.append((f"{part.name} count", f"{self.order}{part.count}"))
                fields.append((part.name, f"{self.order}{part.type}", (next(given),)))
            else:
                fields.append((part.name, f"{self.order}{part.type}"))
        return np.dtype(fields)

    def _cut(self, element: Element, row: int) -> InputError:
        return InputError(
            f"{self.path}: its header promises {element.rows:,} rows of {element.name!r} and the data end at byte "
            f"{self.end:,}, in row {row:,}; get the file again."
        )


def _from_text(
    path: Path, header: Header, before: list[Element], vertex: Element, chosen: dict[str, tuple[str, ...]]
) -> Columns:
    """The vertices of an ascii PLY: a row a line."""
    skip = header.lines + sum(element.rows for element in before)
    rows = Rows(path, skip, vertex.rows, comments=None, last=vertex is header.elements[-1])
    names = [part.name for part in vertex.properties]
    if vertex.has_lists:
        table, names = _ragged(path, rows, vertex), [part.name for part in vertex.properties if not part.count]
    else:
        table = rows.read(vertex.rows)
    if len(table) and table.shape[1] != len(names):
        raise InputError(
            f"{path}, {rows.line_of(0)}: it has {table.shape[1]} numbers and the header names {len(names)}; "
            "get the file again."
        )
    types = {part.name: part.type for part in vertex.properties}
    parts = {}
    for kind, found in chosen.items():
        part = table[:, [names.index(name) for name in found]] if len(table) else np.empty((0, 3))
        # Of such a colour the type says what its numbers are out of.
        typed = kind == "colour" and types[found[0]] in ("u1", "u2")
        parts[kind] = _of_type(path, rows, part, types[found[0]]) if typed else part
    return Columns(parts["xyz"], parts.get("colour"), parts.get("normal"), rows.line_of)


def _of_type(path: Path, rows: Rows, part: Numbers, kind: str) -> Numbers:
    """Numbers of a text in the type of whole numbers that the header says; [rows, 3]."""
    limits = np.iinfo(kind)
    wrong = ~((part >= limits.min) & (part <= limits.max)).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{path}, {rows.line_of(int(wrong.argmax()))}: a colour is not from {limits.min} to {limits.max}, as the "
            "header says; get the file again."
        )
    return part.astype(kind)


def _ragged(path: Path, rows: Rows, vertex: Element) -> Numbers:
    """The single numbers of every row, [rows, numbers], where some properties are lists."""
    found = []
    for number, text in rows.lines(vertex.rows):
        words, values = text.split(), list[float]()
        good = all(is_number(word) for word in words)
        for part in vertex.properties:
            if good and part.count and words and words[0].isdecimal():
                words = words[1 + whole(path, number, words[0]) :]
            elif good and not part.count and words:
                values.append(float(words.pop(0)))
            else:
                good = False
        if not good or words:
            raise InputError(f"{path}, line {number}: it is no row of vertices as the header says; get the file again.")
        found.append(values)
    if len(found) < vertex.rows:
        raise short(path, vertex.rows, f"has {len(found):,} lines of them")
    return np.array(found, dtype=np.float64)
