"""The folder of an evaluation: items are appended as they end, and it takes its name when it is whole."""

from __future__ import annotations

import json
import logging
import os
import re
from io import TextIOWrapper
from pathlib import Path

from filelock import SoftFileLock

from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.checkpoints.run_lock import lock_folder
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.evaluation.arms import EvaluatedItem

log = logging.getLogger(__name__)

ITEMS_FILE, SUMMARY_FILE = "items.jsonl", "summary.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def name_evaluation_folder(run: Path, name: str | None) -> Path:
    """Return the folder of a run's evaluation, `eval` or `eval-NAME`; raises UsageError for a bad name."""
    if name is None:
        return run / "eval"
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name[:100]!r} cannot name a folder. Use letters, digits, and the signs - _ . +")
    return run / f"eval-{name}"


def describe_missing_evaluation(run: Path) -> str:
    """Return the sentences that a run, or the folder of one of its evaluations, holds none, and what to type."""
    parent, named = run.parent, re.fullmatch(r"eval(?:-(.+))?", run.name)
    command = f"vilavt eval {run}"
    if named and (parent / "checkpoints").is_dir():
        command = f"vilavt eval {parent}" + (f" --name {named[1]}" if named[1] else "")
    return f"{run} has not been evaluated. Do that first: {command}"


def find_evaluation_folder(path: Path) -> Path:
    """Return the folder of the evaluation that a user names: the path itself, or its `eval` if the path is a run's."""
    path = expand_home(path)
    holds_one = any((path / name).is_file() for name in (SUMMARY_FILE, ITEMS_FILE))
    return path if holds_one else path / "eval"


class EvaluationFolder:
    """Collects an evaluation's files in a folder of its own beside `target`, until it is whole.

    An evaluation that is stopped leaves the items that it has finished. An earlier one at `target` is moved aside.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path: Path | None = None
        """The folder so far; None before the first item, so that an evaluation that cannot start leaves none."""
        self._items: TextIOWrapper | None = None
        self._error: OSError | None = None
        self._lock: SoftFileLock | None = None

    def add_item(self, item: EvaluatedItem) -> None:
        """Append an item. After an error of the file system no more are written, and the evaluation goes on."""
        if self._error is not None:
            return
        line = json.dumps(item.to_json(), ensure_ascii=False) + "\n"
        try:
            if self._items is None:
                self.path = _make_free_folder(self.target.with_name(f"{self.target.name}.unfinished"))
                self._items = (self.path / ITEMS_FILE).open("w", encoding="utf-8")
                # A new training of the run would move it away, and the rest be written into the new one.
                self._lock = lock_folder(self.path)
                self._lock.acquire(timeout=1)
            self._items.write(line)
            # Each item at once: a process that is killed loses its buffers.
            self._items.flush()
        except OSError as error:
            self._error = error
            log.warning("%s cannot be written (%s). The table is printed all the same.", self.target, _reason(error))

    def require_writable(self) -> Path:
        """Return the folder; raises InputError if an item could not be written to it."""
        self.close()
        if self._error is not None:
            raise InputError(f"{self.target} cannot be written ({_reason(self._error)}). Free some space, or set run=")
        assert self.path is not None, "an evaluation has at least one item"
        return self.path

    def finish(self) -> None:
        """Give the folder its name, and move an earlier evaluation aside; raises InputError."""
        path = self.require_writable()
        try:
            if os.path.lexists(self.target):
                aside = _find_free_name(self.target.with_name(f"{self.target.name}.old"))
                self.target.rename(aside)
                log.info("the earlier evaluation is now in %s", aside)
            path.rename(self.target)
        except OSError as error:
            raise InputError(
                f"{self.target} cannot be replaced ({_reason(error)}). The evaluation is in {path}."
            ) from error

    def close(self) -> None:
        """Close the file of items, and let the run be moved again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._items is not None:
            items, self._items = self._items, None
            try:
                items.close()
            except OSError as error:
                self._error = self._error or error


def _make_free_folder(base: Path) -> Path:
    """Make and return the first free folder of BASE-1, BASE-2 and so on."""
    base.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        # `mkdir` itself decides, so that two evaluations at once never share a folder.
        try:
            folder = base.with_name(f"{base.name}-{number}")
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _find_free_name(base: Path) -> Path:
    number = 1
    while os.path.lexists(found := base.with_name(f"{base.name}-{number}")):
        number += 1
    return found


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
