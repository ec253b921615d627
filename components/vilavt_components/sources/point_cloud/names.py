"""Columns of a point file that are coordinates, colours and normals, found by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.text import shorten_list

Kind = Literal["xyz", "colour", "normal"]

_NAMES: dict[Kind, tuple[tuple[str, str, str], ...]] = {
    "xyz": (("x", "y", "z"),),
    "colour": (
        ("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"),
        ("rf", "gf", "bf"),
    ),
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
}  # fmt: skip
_KNOWN = {name for choices in _NAMES.values() for names in choices for name in names}
_UNIT = re.compile(r"\s*[\[(].*")


Places = dict[Kind, tuple[int, int, int]]
"""The numbers of the three columns of each kind."""


def find_named_columns(names: Sequence[str], file: str) -> Places | None:
    """Find the columns of coordinates, colours and normals by their usual names; None if no name is a usual one.

    Raises InputError if a name stands twice, or if there are other known names without x, y and z.
    """
    plain = [normalise_name(name) for name in names]
    twice = next((name for name in plain if name in _KNOWN and plain.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file} has two columns called {twice!r}. Give each its own name.")
    places: Places = {}
    for kind, choices in _NAMES.items():
        found = next((three for three in choices if set(three) <= set(plain)), None)
        if found is not None:
            first, second, third = (plain.index(name) for name in found)
            places[kind] = first, second, third
    if "xyz" in places:
        return places
    # A single b may be anything, a whole red, green, blue may not.
    if places or not {"x", "y", "z"}.isdisjoint(plain):
        raise InputError(
            f"{file} names its columns {shorten_list([name[:20] for name in names], 8)}, without x, y and z. Call the "
            "coordinates x, y, z."
        )
    return None


def normalise_name(name: str) -> str:
    """Return a column's name in small letters, without quotes and a unit in brackets."""
    return _UNIT.sub("", name.strip().strip("\"'")).strip().casefold()
