"""Files of point clouds: opened by suffix, checked, and converted to float32; written as binary PLY."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.point_cloud.columns import Numbers, PointColumns, check_point_count
from vilavt_components.sources.point_cloud.ply import read_ply
from vilavt_components.sources.point_cloud.text_formats import read_off, read_xyz
from vilavt_components.sources.regular_file import check_regular_file
from vilavt_toolkit.errors import InputError

Points = NDArray[np.float32]
"""[N, 3 + F]"""
Feature = Literal["colour", "normal"]
Column = Literal["colour", "normal", "ignored"]

SUFFIXES = (".npy", ".xyz", ".txt", ".csv", ".pts", ".off", ".ply")
_WIDTHS = {"colour": 3, "normal": 3, "ignored": 1}
_DEFAULT_COLUMNS: dict[int, tuple[Column, ...]] = {3: (), 6: ("colour",), 9: ("colour", "normal")}
"""Columns after x, y, z by the number of all columns, if nobody names them."""
_COLOUR_RANGES = (1.0, 255.0, 65535.0)


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
                table, place = _read_npy(path, max_points), _describe_point
            case _:
                table, rows = read_xyz(path, max_points)
                place = rows.describe_row
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied. Change its permissions.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its path.") from error
    return PointColumns(*split_columns(table, columns, str(path)), place)


def split_columns(
    table: Numbers, columns: Sequence[Column] | None, name: str
) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Split a table [N, columns] into coordinates, colours and normals by its columns' names; raises InputError."""
    width = table.shape[1]
    if width < 3:
        raise InputError(f"{name} has {width} columns, and a point needs three, x, y and z. Give another cloud.")
    given = _DEFAULT_COLUMNS.get(width) if columns is None else columns
    if given is None:
        raise InputError(
            f"{name} has {width} columns and does not say what they are. Name those after x, y, z in "
            "model.source.columns, from colour, normal (3 each) and ignored (1)."
        )
    # Exactly, so that columns that nobody named are never taken for something else.
    wanted = 3 + sum(_WIDTHS[column] for column in given)
    if width != wanted:
        raise InputError(
            f"{name} has {width} columns, and model.source.columns ({', '.join(given) or 'none'}) makes it {wanted}. "
            "Correct that setting."
        )
    found: dict[str, Numbers] = {}
    start = 3
    for column in given:
        found[column] = table[:, start : start + _WIDTHS[column]]
        start += _WIDTHS[column]
    return table[:, :3], found.get("colour"), found.get("normal")


# Numbers too large for float32 become infinite without a warning: `_handle_nonfinite` finds them with the others.
@np.errstate(over="ignore", invalid="ignore")
def to_points(given: PointColumns, features: Sequence[Feature], drop: bool, name: str) -> Points:
    """Convert columns to points, float32 [N, 3 + F], with the features in their order; raises InputError.

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
    points = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts], axis=1)
    return _handle_nonfinite(np.ascontiguousarray(points), given, drop, name)


def _handle_nonfinite(points: Points, given: PointColumns, drop: bool, name: str) -> Points:
    # One sum is much cheaper than a mask of all points. It is finite if all numbers are, except for overflow,
    # and then the mask below finds no bad point.
    if not len(points) or np.isfinite(points.sum(dtype=np.float64)):
        return points
    good = np.isfinite(points).all(axis=1)
    if not drop and not good.all():
        index = int((~good).argmax())
        values = ", ".join(f"{value:g}" for value in points[index])
        raise InputError(
            f"{name}, {given.describe_point(index)}: a point is not finite ({values}). Correct it, or set "
            "model.source.invalid to drop."
        )
    return np.ascontiguousarray(points[good])


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
    """Read an array [N, columns] of numbers from a .npy file; raises InputError."""
    # Mapped rather than read, so that a false header cannot make us allocate more than the file holds.
    try:
        table: Any = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path} is no whole .npy file of numbers ({error}). Save it again with numpy.save."
        ) from error
    if table.dtype.kind not in "fiu" or table.ndim != 2:
        raise InputError(
            f"{path} holds {table.dtype} {list(table.shape)}, not numbers [points, columns]. Save it again."
        )
    check_point_count(path, len(table), max_points)
    return np.asarray(table)


def _describe_point(index: int) -> str:
    return f"point {index}"


def write_ply(path: Path, xyz: Points, colour: Points | None, normal: Points | None) -> None:
    """Write a binary PLY, with colours as bytes, the form that all programs read."""
    fields: list[tuple[str, str]] = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    values = [*xyz.T]
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
    kinds = {"<f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    lines += [f"property {kinds[kind]} {name}" for name, kind in fields]
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + table.tobytes())
