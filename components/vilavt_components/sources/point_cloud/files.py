"""Point clouds as files: opened by suffix, checked, and made 32-bit numbers; written as binary PLY."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_components.sources.point_cloud.columns import Columns, Numbers, check_count
from vilavt_components.sources.point_cloud.ply import read_ply
from vilavt_components.sources.point_cloud.text_formats import read_off, read_xyz
from vilavt_toolkit.errors import InputError

Points = NDArray[np.float32]
"""[N, 3 + F]"""
Feature = Literal["colour", "normal"]
Column = Literal["colour", "normal", "ignored"]

FILES = (".npy", ".xyz", ".txt", ".csv", ".pts", ".off", ".ply")
_WIDTHS = {"colour": 3, "normal": 3, "ignored": 1}
_USUAL: dict[int, tuple[Column, ...]] = {3: (), 6: ("colour",), 9: ("colour", "normal")}
"""What stands behind x, y, z in a table of so many columns, if nobody says."""
_COLOUR_RANGES = (1.0, 255.0, 65535.0)


def read_file(path: Path, columns: Sequence[Column] | None, most: int) -> Columns:
    """Read a file of points, at most `most` of them; raises InputError naming it and what to do."""
    try:
        _check_file(path)
        match path.suffix.lower():
            case ".ply":
                return read_ply(path, most)
            case ".off":
                return read_off(path, most)
            case ".npy":
                table, place = _read_npy(path, most), _point
            case _:
                table, rows = read_xyz(path, most)
                place = rows.line_of
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check its path.") from error
    return Columns(*split(table, columns, str(path)), place)


def split(
    table: Numbers, columns: Sequence[Column] | None, name: str
) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Coordinates, colours and normals of a table [N, columns], as `columns` says; raises InputError."""
    width = table.shape[1]
    if width < 3:
        raise InputError(f"{name} has {width} columns, and a point needs three, x, y and z; give another cloud.")
    given = _USUAL.get(width) if columns is None else columns
    if given is None:
        raise InputError(
            f"{name} has {width} columns and does not say what they are; name those behind x, y, z in "
            "model.source.columns, from colour, normal (3 each) and ignored (1)."
        )
    wanted = 3 + sum(_WIDTHS[column] for column in given)
    if width != wanted:
        raise InputError(
            f"{name} has {width} columns, and model.source.columns ({', '.join(given) or 'none'}) makes it {wanted}; "
            "correct that setting."
        )
    found: dict[str, Numbers] = {}
    start = 3
    for column in given:
        found[column] = table[:, start : start + _WIDTHS[column]]
        start += _WIDTHS[column]
    return table[:, :3], found.get("colour"), found.get("normal")


# What is too large for 32 bits becomes infinite, and is refused with what is not finite from the start.
@np.errstate(over="ignore", invalid="ignore")
def to_points(given: Columns, features: Sequence[Feature], drop: bool, name: str) -> Points:
    """Points as float32 [N, 3 + F], the features in their order; raises InputError for what cannot be one.

    What is not finite is dropped with `drop`, and refused otherwise.
    """
    has = {"colour": given.colour, "normal": given.normal}
    parts = [given.xyz]
    for feature in features:
        part = has[feature]
        if part is None:
            there = [kind for kind, values in has.items() if values is not None]
            raise InputError(
                f"{name} has no {feature}s, only {' and '.join(['coordinates', *there])}, and model.source.features "
                f"asks for them; give a cloud that has them, or set it to "
                f"[{', '.join(kind for kind in features if kind in there)}] before training."
            )
        parts.append(_unit_colours(part, name) if feature == "colour" else part)
    points = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts], axis=1)
    return _finite(np.ascontiguousarray(points), given, drop, name)


def _finite(points: Points, given: Columns, drop: bool, name: str) -> Points:
    # A sum is finite where all its parts are, but for overflow, which a second look settles.
    if not len(points) or np.isfinite(points.sum(dtype=np.float64)):
        return points
    good = np.isfinite(points).all(axis=1)
    if not drop and not good.all():
        index = int((~good).argmax())
        values = ", ".join(f"{value:g}" for value in points[index])
        raise InputError(
            f"{name}, {given.place(index)}: a point is not finite ({values}); correct it, or set model.source.invalid "
            "to drop."
        )
    return np.ascontiguousarray(points[good])


def _unit_colours(colours: Numbers, name: str) -> Numbers:
    """Colours from 0 to 1; raises InputError where their range is none that is used."""
    if colours.dtype in (np.uint8, np.uint16):
        return colours / np.float32(np.iinfo(colours.dtype).max)
    finite = colours if not len(colours) or np.isfinite(colours.sum()) else colours[np.isfinite(colours)]
    if not finite.size:
        return colours
    low, high = float(finite.min()), float(finite.max())
    top = next((top for top in _COLOUR_RANGES if high <= top), None)
    if low < 0 or top is None:
        raise InputError(
            f"{name} has colours from {low:g} to {high:g}, and they must be 0 to 1, 255 or 65535; "
            "if they are normals, name them so in model.source.columns."
        )
    return colours if top == 1 else colours / top


def _check_file(path: Path) -> None:
    """Refuse what is no file with something in it, or of no known kind; raises OSError where it cannot be seen."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a point cloud.")
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path of the point cloud.")
    if not path.is_file():
        raise InputError(f"{path} is no regular file; give the path of a point cloud.")
    if path.suffix.lower() not in FILES:
        raise InputError(f"{path} has the suffix of no point cloud that is read; save it as one of {', '.join(FILES)}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); get the point cloud again.")


def _read_npy(path: Path, most: int) -> Numbers:
    """Read an array [N, columns] of numbers; mapped into memory first, so that no header gets what is not there."""
    try:
        table: Any = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path} is no whole .npy file of numbers ({error}); save it again with numpy.save."
        ) from error
    if table.dtype.kind not in "fiu" or table.ndim != 2:
        raise InputError(
            f"{path} holds {table.dtype} {list(table.shape)}, not numbers [points, columns]; save it anew."
        )
    check_count(path, len(table), most)
    return np.asarray(table)


def _point(index: int) -> str:
    return f"point {index}"


def write_ply(path: Path, xyz: Points, colour: Points | None, normal: Points | None) -> None:
    """Write a binary PLY; colours as bytes, as everybody reads them."""
    fields: list[tuple[str, str]] = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    values = [*xyz.T]
    if normal is not None:
        fields += [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
        values += [*normal.T]
    if colour is not None:
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
        values += [*np.rint(255 * colour.clip(0, 1)).T]
    table = np.empty(len(xyz), dtype=fields)
    for (name, _), column in zip(fields, values, strict=True):
        table[name] = column
    kinds = {"<f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    lines += [f"property {kinds[kind]} {name}" for name, kind in fields]
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + table.tobytes())
