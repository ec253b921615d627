"""Files of point clouds: opened by suffix, checked, and converted to float32; written as binary PLY."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.point_cloud.columns import Numbers, PointColumns, check_point_count
from vilavt_components.sources.point_cloud.names import Places, find_named_columns
from vilavt_components.sources.point_cloud.ply import read_ply
from vilavt_components.sources.point_cloud.text_formats import read_off, read_xyz
from vilavt_components.sources.regular_file import check_regular_file
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.text import shorten_list, shorten_text

Points = NDArray[np.float32]
"""[N, 3 + F]"""
Feature = Literal["colour", "normal"]
Column = Literal["colour", "normal", "ignored"]

SUFFIXES = (".npy", ".xyz", ".txt", ".csv", ".pts", ".off", ".ply")
_WIDTHS = {"colour": 3, "normal": 3, "ignored": 1}
_DEFAULT_COLUMNS: dict[int, tuple[Column, ...]] = {3: (), 6: ("colour",), 9: ("colour", "normal")}
"""Columns after x, y, z by the number of all columns, if nobody names them."""
_COLOUR_RANGES = (1.0, 255.0, 65535.0)
_MAX_ROUNDING_SHARE = 1e-3
"""Largest step between neighbouring coordinates of a file, as a share of the longest side."""
_SHORTEST, _LONGEST = 1e-20, 1e20
"""Length of a cloud in any unit; far inside of what 32 bits hold, so that its squares are numbers too."""
_FAR = 100
"""Distance from the origin, in lengths of the cloud, from which on 32 bits would hold too few digits."""


def read_file(path: Path, columns: Sequence[Column] | None, max_points: int) -> PointColumns:
    """Read a file of at most `max_points` points; raises InputError naming it and what to do."""
    try:
        _check_file(path)
        # PLY and OFF name their columns. Plain tables do not, so the settings split them below.
        match path.suffix.lower():
            case ".ply":
                return read_ply(path, max_points)
            case ".off":
                return read_off(path, max_points)
            case ".npy":
                return columns_from_array(_read_npy(path, max_points), columns, str(path))
            case _:
                table, rows, names = read_xyz(path, max_points)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied. Change its permissions.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its path.") from error
    return split_columns(table, columns, str(path), rows.describe_row, names)


def columns_from_array(array: NDArray[Any], columns: Sequence[Column] | None, name: str) -> PointColumns:
    """Split an array of numbers [N, columns], or a structured one [N] whose fields are named; raises InputError."""
    fields = array.dtype.names
    if fields is not None and array.ndim == 1 and all(array.dtype[field].kind in "fiu" for field in fields):
        named = find_named_columns(fields, name)
        if named is None:
            raise InputError(f"{name} has the fields {shorten_list(fields, 8)}, without x, y and z. Rename them.")
        for kind, three in named.items():
            # NumPy would take the larger of two types, and read bytes as a share of its range.
            if kind == "colour" and len({array.dtype[fields[k]] for k in three}) > 1:
                raise InputError(f"{name}: its colours are fields of different types. Give them one type.")
        parts = {kind: np.stack([array[fields[k]] for k in three], axis=1) for kind, three in named.items()}
        return PointColumns(parts["xyz"], parts.get("colour"), parts.get("normal"), describe_point)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype} {list(array.shape)}, not numbers [points, columns]. Convert it.")
    return split_columns(array, columns, name, describe_point)


def split_columns(
    table: Numbers,
    columns: Sequence[Column] | None,
    name: str,
    describe: Callable[[int], str],
    names: Sequence[str] | None = None,
) -> PointColumns:
    """Split a table [N, columns] into coordinates, colours and normals; raises InputError.

    The names of its columns decide, where it has them, and else the setting `columns` or their number.
    """
    named = find_named_columns(names, name) if names is not None else None
    places = named if named is not None and columns is None else _place_columns(table.shape[1], columns, name, names)
    if named is not None and _is_contradicted(places, named):
        raise InputError(
            f"{name} names its columns {shorten_list(names or [], 9)}, and model.source.columns says otherwise. Set it "
            "to null, or correct the names."
        )
    parts = {kind: table[:, list(three)] for kind, three in places.items()}
    return PointColumns(parts["xyz"], parts.get("colour"), parts.get("normal"), describe)


def _is_contradicted(places: Places, named: Places) -> bool:
    """Return True if columns are placed where their names are those of another feature."""
    owners = {column: kind for kind, three in named.items() for column in three}
    return any(
        named.get(kind, three) != three or any(owners.get(column, kind) != kind for column in three)
        for kind, three in places.items()
    )


def _place_columns(width: int, columns: Sequence[Column] | None, name: str, names: Sequence[str] | None) -> Places:
    """Return the columns of each kind of feature by the setting, or by their number; raises InputError."""
    if width < 3:
        raise InputError(f"{name} has {width} columns, and a point needs three, x, y and z. Give another cloud.")
    given = _DEFAULT_COLUMNS.get(width) if columns is None else columns
    # Columns with names of their own are what the names say, not what their number suggests.
    if given is None or (names is not None and columns is None and given):
        said = "does not say what they are" if names is None else f"calls them {shorten_list(names, 9)}"
        raise InputError(
            f"{name} has {width} columns and {said}. Name those after x, y, z in model.source.columns, from colour, "
            "normal (3 each) and ignored (1)."
        )
    # Exactly, so that columns that nobody named are never taken for something else.
    wanted = 3 + sum(_WIDTHS[column] for column in given)
    if width != wanted:
        raise InputError(
            f"{name} has {width} columns, and model.source.columns ({', '.join(given) or 'none'}) makes it {wanted}. "
            "Correct that setting."
        )
    found: Places = {"xyz": (0, 1, 2)}
    start = 3
    for column in given:
        if column != "ignored":
            found[column] = start, start + 1, start + 2
        start += _WIDTHS[column]
    return found


@dataclass(frozen=True)
class Cloud:
    """The points of a cloud in 32 bits, and their coordinates in 64 bits where 32 are not enough."""

    points: Points
    """Coordinates from `offset` on, then the features in their order."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    exact: NDArray[np.float64] | None = None
    """Coordinates as in the file, [N, 3]; None if `points` holds them as they are."""

    @property
    def xyz(self) -> Numbers:
        """Coordinates as in the file, [N, 3]."""
        return self.points[:, :3] if self.exact is None else self.exact


# Numbers too large for float32 become infinite without a warning: they are found with the others.
@np.errstate(over="ignore", invalid="ignore")
def to_cloud(given: PointColumns, features: Sequence[Feature], drop: bool, name: str) -> Cloud:
    """Convert columns to points with the features in their order; raises InputError.

    Points with NaN or infinite numbers are dropped with `drop`, and refused otherwise.
    """
    has = {"colour": given.colour, "normal": given.normal}
    # In the order of `features`, which the encoder's input weights depend on.
    parts = [given.xyz]
    for feature in features:
        part = has[feature]
        if part is None:
            there = [kind for kind, values in has.items() if values is not None]
            raise InputError(
                f"{name} has no {feature}s, only {' and '.join(['coordinates', *there])}, and model.source.features "
                f"asks for them. Give a cloud that has them, or set it to "
                f"[{', '.join(kind for kind in features if kind in there)}] before training."
            )
        parts.append(_scale_colours(part, name) if feature == "colour" else part)
    points = np.ascontiguousarray(np.concatenate([np.asarray(part, dtype=np.float32) for part in parts], axis=1))
    good = _find_finite(points, given, drop, name)
    if good is None:
        return _keep_precision(points, given.xyz, name)
    return _keep_precision(np.ascontiguousarray(points[good]), given.xyz[good], name)


def _find_finite(points: Points, given: PointColumns, drop: bool, name: str) -> NDArray[np.bool_] | None:
    """Return a mask of the points whose numbers are finite, None for all; raises InputError if they must be all."""
    # One sum is much cheaper than a mask of all points. It is finite if all numbers are, except for overflow,
    # and then the mask below finds no bad point.
    if not len(points) or np.isfinite(points.sum(dtype=np.float64)):
        return None
    good = np.asarray(np.isfinite(points).all(axis=1))
    if not drop and not good.all():
        index = int((~good).argmax())
        values = ", ".join(f"{value:g}" for value in points[index])
        raise InputError(
            f"{name}, {given.describe_point(index)}: a point is not finite ({values}). Correct it, or set "
            "model.source.invalid to drop."
        )
    return good


def _keep_precision(points: Points, xyz: Numbers, name: str) -> Cloud:
    """Move points to their middle if 32 bits lose some of their coordinates, or if they are far from the origin.

    Raises InputError for coordinates that have lost too much in the file.
    """
    if not len(points):
        return Cloud(points)
    low, high = (np.array(edge, dtype=np.float64) for edge in (xyz.min(axis=0), xyz.max(axis=0)))
    farthest, longest = float(max(abs(low).max(), abs(high).max())), float((high - low).max())
    # Bytes in the wrong order read as such numbers: whole and short fractions tiny, all others of any size.
    if longest and not _SHORTEST <= longest <= _LONGEST:
        raise InputError(
            f"{name} is {longest:.3g} long, which no cloud is. Write it again in the byte order that its header names, "
            "or in another unit."
        )
    if xyz.dtype.kind == "f" and np.spacing(xyz.dtype.type(farthest)) > _MAX_ROUNDING_SHARE * longest > 0:
        bits = 8 * xyz.dtype.itemsize
        raise InputError(
            f"{name} lies {farthest:g} from the origin and is {longest:g} long, so that its {bits}-bit numbers cannot "
            "tell its points apart. Write it anew with 64-bit numbers, or from its middle on."
        )
    if farthest <= _FAR * longest and (xyz.dtype == np.float32 or np.array_equal(points[:, :3], xyz)):
        return Cloud(points)
    # A copy of its own: the array may be mapped from a file, or belong to a caller who writes into it.
    exact = np.array(xyz, dtype=np.float64)
    middle = (low + high) / 2
    points[:, :3] = exact - middle
    return Cloud(points, (float(middle[0]), float(middle[1]), float(middle[2])), exact)


def _scale_colours(colours: Numbers, name: str) -> Numbers:
    """Scale colours to 0 to 1, from bytes or from one of the usual ranges; raises InputError for any other range."""
    if colours.dtype in (np.uint8, np.uint16):
        return colours / np.float32(np.iinfo(colours.dtype).max)
    # NaN and infinite colours are left for `_handle_nonfinite`, which knows the setting `invalid`.
    finite = colours if not len(colours) or np.isfinite(colours.sum()) else colours[np.isfinite(colours)]
    if not finite.size:
        return colours
    low, high = float(finite.min()), float(finite.max())
    top = next((top for top in _COLOUR_RANGES if high <= top), None)
    if low < 0 or top is None:
        raise InputError(
            f"{name} has colours from {low:g} to {high:g}, and they must be 0 to 1, 255 or 65535. "
            "If they are normals, name them so in model.source.columns."
        )
    return colours if top == 1 else colours / top


def _check_file(path: Path) -> None:
    """Refuse a path without a file of a known suffix; raises InputError, or OSError if it cannot be accessed."""
    check_regular_file(path, "point cloud", "the path of a point cloud")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no point cloud by its suffix. Save it as one of {', '.join(SUFFIXES)}.")


def _read_npy(path: Path, max_points: int) -> Numbers:
    """Read an array from a .npy file; raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            # Mapped rather than read, so that a false header cannot make us allocate more than the file holds.
            table: Any = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:
        # NumPy parses headers with Python's own parser, and malformed ones make it raise almost anything.
        raise InputError(
            f"{path} is no whole .npy file of numbers ({shorten_text(str(error), 100)}). Save it again with numpy.save."
        ) from error
    check_point_count(path, len(table) if table.ndim else 0, max_points)
    # A second array in the file, or a header that promises too few points: either would be left out in silence.
    if more := path.stat().st_size - table.offset - table.nbytes:
        raise InputError(
            f"{path}: its header promises {list(table.shape)} numbers, and {more:,} bytes follow them. Save one array "
            "in a file."
        )
    return np.asarray(table)


def describe_point(index: int) -> str:
    """Say which point it is, where nothing better is known."""
    return f"point {index}"


def write_ply(path: Path, xyz: Numbers, colour: Points | None, normal: Points | None) -> None:
    """Write a binary PLY, with colours as bytes, the form that all programs read."""
    kind = "<f8" if xyz.dtype == np.float64 else "<f4"
    fields: list[tuple[str, str]] = [("x", kind), ("y", kind), ("z", kind)]
    values: list[Numbers] = [*xyz.T]
    if normal is not None:
        fields += [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
        values += [*normal.T]
    if colour is not None:
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
        values += [*np.rint(255 * colour.clip(0, 1)).T]
    # Fields of a NumPy structure follow each other without padding, as the rows of a PLY do.
    table = np.empty(len(xyz), dtype=fields)
    for (name, _), column in zip(fields, values, strict=True):
        table[name] = column
    kinds = {"<f8": "double", "<f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    lines += [f"property {kinds[kind]} {name}" for name, kind in fields]
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + table.tobytes())
