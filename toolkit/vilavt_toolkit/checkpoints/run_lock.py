"""The lock of a run folder: one process at a time trains into it."""

from __future__ import annotations

import logging
import os
import shlex
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import SoftFileLock, Timeout

from vilavt_toolkit.checkpoints.run_folder import LOCK_FILE, has_run, rename_run_aside
from vilavt_toolkit.errors import RunError

log = logging.getLogger(__name__)

_ATTEMPTS = 4
"""Times that a folder is made and locked again when another process has just moved it."""
_SECONDS_UNNAMED = 3.0
"""Time for which a lock that names no process is waited for. filelock takes two seconds to see that it is damaged."""


def lock_folder(folder: Path) -> SoftFileLock:
    """Return the lock of a folder that this process works in; the caller acquires and releases it."""
    # Not a lock of the operating system: worker processes would inherit it and keep it after their run was killed, and
    # not every network file system has one.
    return SoftFileLock(folder / LOCK_FILE)


class RunLock:
    """A context in which no other process trains into a run folder; raises RunError if one does already.

    The lock is a file in the folder with the number and the host of its process. It is taken over if that process has
    ended. Processes of another host cannot be asked, so their locks are refused with the words that remove them.
    """

    def __init__(self, run: Path, key: str = "run", create: bool = True) -> None:
        """`key` is the key of the recipe that names the folder.

        With `create` a new run goes there, else one is resumed: a missing folder stays missing.
        """
        self.run, self.key = run, key
        # Through a link, so that the folder behind it is locked and moved, and the link goes on leading to the run.
        self._folder = Path(os.path.realpath(run))
        self._create = create
        self._made: list[Path] = []
        self._lock = lock_folder(self._folder)

    def __enter__(self) -> RunLock:
        """Make the folder where it is missing, and lock it; raises RunError."""
        if self._create:
            has_run(self.run, self.key)
        elif not self._folder.is_dir():
            return self
        try:
            self._acquire()
            self._check_writable()
            self._check_evaluations()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._remove_made()

    def move_run_aside(self) -> None:
        """Rename an earlier run to RUN.old-1, -2, ..., so that a new one neither mixes with it nor deletes it.

        Raises RunError if the folder cannot become a run, or cannot be renamed.
        """
        if not has_run(self.run, self.key):
            return
        self._check_evaluations()
        aside = rename_run_aside(self.run, self._folder, self.key)
        log.warning("%s held an earlier run. It is now %s.", self.run, aside)
        # The lock went with the folder. Whoever locks the new one first has it: we do, or are refused.
        with suppress(OSError):
            (aside / LOCK_FILE).unlink()
        self._lock.release()
        self._lock = lock_folder(self._folder)
        self._acquire()

    def _acquire(self) -> None:
        """Make the folder and lock it; raises RunError."""
        seconds = 0.2
        for _ in range(_ATTEMPTS):
            self._make_folders()
            try:
                self._lock.acquire(timeout=seconds)
                return
            except FileNotFoundError:
                # The process that had the folder has just moved it aside.
                continue
            except Timeout:
                if seconds == _SECONDS_UNNAMED or self._read_owner() is not None:
                    break
                # A lock that names no process is just being written, or was cut off by a full disk.
                seconds = _SECONDS_UNNAMED
            except OSError as error:
                raise self._refuse_writing(error) from error
        raise RunError(self._describe_owner())

    def _check_evaluations(self) -> None:
        """Raise RunError if the folder of an earlier run would be moved away from under an evaluation of it."""
        if not self._create:
            return
        for file in self._folder.glob(f"*/{LOCK_FILE}"):
            lock = SoftFileLock(file)
            try:
                # An evaluation that was killed has left its lock, which this takes over and removes.
                lock.acquire(timeout=0.2)
                lock.release()
            except Timeout as error:
                raise RunError(self._describe_owner(file, "evaluates the run in it")) from error

    def _read_owner(self, file: Path | None = None) -> tuple[int, str] | None:
        """Return process and host that the lock names; None if it names none."""
        try:
            number, host = (file or self._folder / LOCK_FILE).read_text(encoding="utf-8").split("\n")[:2]
            return int(number), host
        except (OSError, ValueError):
            return None

    def _describe_owner(self, file: Path | None = None, work: str = "trains into it") -> str:
        """Return the sentence that refuses a locked folder: who has it, and what to do."""
        remove, owner = f"rm {shlex.quote(str(file or self._folder / LOCK_FILE))}", self._read_owner(file)
        if owner is None:
            return f"{self.run} has a lock that names no process. If no run writes there, remove it: {remove}"
        number, host = owner
        # A process can be asked whether it lives on its own machine alone.
        if host == socket.gethostname():
            return (
                f"{self.run} is in use by process {number} on {host}, which {work}. Wait until it ends, or "
                f"choose another folder with `{self.key}=`."
            )
        return (
            f"{self.run} is in use by process {number} on {host}, which cannot be asked from {socket.gethostname()}. "
            f"If that run has ended, remove its lock: {remove}"
        )

    # --- Folders ---------------------------------------------------------------------------------------------------

    def _make_folders(self) -> None:
        """Make the run folder and those above it, and remember which were new; raises RunError."""
        missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self._made.append(path)
        except OSError as error:
            raise self._refuse_writing(error) from error

    def _check_writable(self) -> None:
        # The folder of an earlier run may be ours, and the folders in it another user's.
        for path in (self._folder / "checkpoints", self._folder / "logs"):
            if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
                raise RunError(f"{path} cannot be written. Choose another folder with `{self.key}=`.")

    def _remove_made(self) -> None:
        """Remove the folders that were made, unless something has been written into them."""
        for path in reversed(self._made):
            with suppress(OSError):
                path.rmdir()
        self._made.clear()

    def _refuse_writing(self, error: OSError) -> RunError:
        reason = error.strerror or str(error)
        return RunError(f"{self.run} cannot be written ({reason}). Choose another folder with `{self.key}=`.")


def refuse_run_folder(run: Path, key: str = "run") -> None:
    """Raise RunError if a new run cannot go into a folder, as `RunLock` would; nothing is made or locked for longer."""
    has_run(run, key)
    folder = Path(os.path.realpath(run))
    if (folder / LOCK_FILE).exists():
        with RunLock(run, key, create=False):
            return
    parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"{parent} cannot be written. Choose another folder with `{key}=`.")
