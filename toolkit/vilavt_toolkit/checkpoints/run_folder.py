"""Run folders: the path that a user names, and earlier runs in the way of a new one."""

from __future__ import annotations

import os
from pathlib import Path

from vilavt_toolkit.errors import RunError
from vilavt_toolkit.utils.files import find_address, resolve_address

LOCK_FILE = ".lock"
"""The file of a run folder that names the process that trains into it."""


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return the folder that a user names, with `~` as their home; raises RunError if it is none here."""
    if address := find_address(path):
        raise RunError(f"{address} is a web address. Give the path of a folder on this machine.")
    if not os.fspath(path).strip():
        raise RunError(f"{os.fspath(path)!r} names no folder. Write the path of one.")
    try:
        return Path(resolve_address(path)).expanduser()
    except RuntimeError as error:
        raise RunError(f"{os.fspath(path)!r} names a home folder that is not known. Write the whole path.") from error


def has_run(run: Path, key: str = "run") -> bool:
    """Return True if a folder holds an earlier run, False if it is empty or missing.

    Raises RunError if it cannot become a run: a file, a folder of other files, or a run that contains the working
    folder. `key` is the key of the recipe that names the folder.
    """
    try:
        # A lock alone was left by a run that was killed before it began.
        names = {path.name for path in run.iterdir() if not path.name.startswith(LOCK_FILE)}
        is_inside = Path.cwd().is_relative_to(run.resolve())
    # Not asked for beforehand: another process may move the folder away at any moment.
    except FileNotFoundError:
        return False
    except NotADirectoryError as error:
        raise RunError(f"{run} is a file or lies in one. Choose another folder with `{key}=`.") from error
    except OSError as error:
        raise RunError(f"{run} cannot be read ({error.strerror}). Choose another folder with `{key}=`.") from error
    if not names:
        return False
    # A recipe that was evaluated before it was trained has its evaluation there.
    if not names & {"recipe.yaml", "checkpoints"} and not all(name.startswith("eval") for name in names):
        raise RunError(f"{run} holds files that are no run. Choose another folder with `{key}=`.")
    # The run would be moved with the folder that the user is in, and relative paths of the recipe would break.
    if is_inside:
        raise RunError(f"{run} holds an earlier run and the folder you are in. Choose another folder with `{key}=`.")
    return True


def rename_run_aside(run: Path, folder: Path, key: str) -> Path:
    """Rename the `folder` that a run's path leads to into the first free of NAME.old-1, -2, ..., and return that.

    Raises RunError if it cannot be renamed.
    """
    number = 1
    # `lexists`, since a broken link also takes a name.
    while os.path.lexists(aside := folder.with_name(f"{folder.name}.old-{number}")):
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise RunError(
            f"{run} holds an earlier run that cannot be moved ({error.strerror}). Choose another folder with `{key}=`."
        ) from error
    return aside
