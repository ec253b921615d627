"""Splits with samples: nothing is trained on, or evaluated on, an empty one."""

from __future__ import annotations

from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import UsageError


def require_samples(task: Task, name: str, split: str) -> int:
    """Return the number of samples of a split of the task called `name`; raises UsageError if it is empty."""
    size = task.length(split)
    if not size:
        raise UsageError(f"split '{split}' of {name} has no samples. Choose another split, task or files.")
    return size


def has_split(task: Task, split: str) -> bool:
    """Return True if a task has samples in a split."""
    try:
        return task.length(split) > 0
    except UsageError:
        return False
