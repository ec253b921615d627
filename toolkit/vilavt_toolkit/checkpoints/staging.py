"""The place of a checkpoint in its run: written in a hidden folder beside it, moved there whole, removed when old."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vilavt_toolkit.errors import InputError

log = logging.getLogger(__name__)

_BEST = "best"
"""The link among the checkpoints of a run to the best one."""

_FOLDER = re.compile(r"step-(\d{8})")


class StagedCheckpoint:
    """A checkpoint that is being written. No reader sees it before it is whole.

    Several processes may write into `folder` before one of them moves it: they are given the same `token`.
    """

    def __init__(self, run: Path, step: int, token: str = "") -> None:
        self.run, self.step = run, step
        self.final = run / "checkpoints" / _folder_name(step)
        """Its place."""
        self.folder = self.final.with_name(f".{self.final.name}.{token or make_token()}")
        """Folder in which it is written."""

    def create(self) -> None:
        """Make the folder to write into; raises InputError."""
        with self.explained():
            self.folder.mkdir(parents=True)

    def move_into_place(self) -> Path:
        """Give what was written the place of the checkpoint, and return that; raises InputError."""
        with self.explained():
            # A folder cannot replace one that has files. Moved away first, the old one is never seen half deleted.
            if self.final.exists():
                os.replace(self.final, self.folder.with_name(f"{self.folder.name}.old"))
            os.replace(self.folder, self.final)
        return self.final

    def discard(self) -> None:
        """Remove what was written, if it was not moved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise InputError for what goes wrong while files are written, such as a full disk."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self.final} cannot be written ({error}). Free disk space, then run again with --resume."
            ) from error


def make_token() -> str:
    """Return a part of a name that no other folder has."""
    return secrets.token_hex(4)


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run in the order of their steps; raises OSError."""
    folder = run / "checkpoints"
    # Names are padded with zeros, so that their order is that of the steps.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if _FOLDER.fullmatch(path.name)]


def remove_old_checkpoints(run: Path, keep: int, kept_steps: Collection[int | None] = ()) -> None:
    """Remove all checkpoints but the newest `keep` and those of `kept_steps`, and what was never moved into place."""
    kept = {_folder_name(step) for step in kept_steps if step is not None}
    old_ones = [path for path in list_checkpoints(run)[:-keep] if path.name not in kept]
    # Hidden folders were replaced, or left by a process that was killed while it wrote.
    for old in [*old_ones, *(run / "checkpoints").glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)


def link_best_checkpoint(run: Path, step: int) -> None:
    """Let RUN/checkpoints/best lead to the checkpoint of a step; only a warning says if that cannot be."""
    link = run / "checkpoints" / _BEST
    temporary = link.with_name(f".{_BEST}.{make_token()}")
    # Made beside it and moved: the link leads to a whole checkpoint at every moment.
    try:
        temporary.symlink_to(_folder_name(step), target_is_directory=True)
        os.replace(temporary, link)
    except OSError as error:
        log.warning("%s cannot be linked to step %d (%s), which is the best.", link, step, error.strerror)


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"
