"""Run folders: finding one, telling whether a folder holds one, and moving an earlier one aside."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vilavt_toolkit.errors import RunError

log = logging.getLogger(__name__)


def run_folder(path: str | os.PathLike[str]) -> Path:
    """The folder that a user names, `~` being their home; raises RunError."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RunError(f"{os.fspath(path)!r} names a home folder that is not known; write the whole path.") from error


def holds_run(run: Path) -> bool:
    """Whether a folder holds an earlier run, not nothing; raises RunError where it is no place for a run."""
    try:
        if not run.exists():
            return False
        if not run.is_dir():
            raise RunError(f"{run} is a file; choose another folder with `run=`.")
        names = {path.name for path in run.iterdir()}
        inside = Path.cwd().is_relative_to(run.resolve())
    except OSError as error:
        raise RunError(f"{run} cannot be read ({error.strerror}); choose another folder with `run=`.") from error
    if not names:
        return False
    if not names & {"recipe.yaml", "checkpoints"}:
        raise RunError(f"{run} holds files that are no run; choose another folder with `run=`.")
    if inside:  # what is named relative to here would be lost with it
        raise RunError(f"{run} holds an earlier run and the folder you are in; choose another folder with `run=`.")
    return True


def set_aside(run: Path) -> None:
    """Move an earlier run out of the way, so that nothing of it is lost or mixed with a new one; raises RunError."""
    if not holds_run(run):
        return
    folder = run if run.name not in ("", "..") else run.resolve()
    number = 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}.old-{number}")):
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise RunError(
            f"{run} holds an earlier run that cannot be moved ({error.strerror}); choose another folder with `run=`."
        ) from error
    log.warning("%s held an earlier run; it is now %s.", run, aside)
