"""Checks of a path that every source makes before it opens a file."""

from __future__ import annotations

import os
from pathlib import Path

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.files import resolve_address


def to_path(original: str | os.PathLike[str]) -> Path:
    """Return the path that a user gave; raises InputError for a web address, which a path would lose a slash of."""
    return Path(resolve_address(original))


def check_regular_file(path: Path, noun: str, wanted: str) -> None:
    """Refuse a path without a file or with an empty one; raises InputError.

    Errors call the file a `noun` ("image") and ask for what is `wanted` ("the path of an image file"). Raises OSError
    if not even that can be found out, as for a name that is too long.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give {wanted}.")
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path of the {noun}.")
    # A pipe or a device: reading it could wait for ever.
    if not path.is_file():
        raise InputError(f"{path} is no regular file. Give {wanted}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Get the {noun} again.")
