"""Progress bars with time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from vilavt_toolkit.utils.text import escape_controls

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")


def track_progress(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield items while a progress bar on stderr shows how many are done and the time left."""
    from rich.console import Console

    with make_progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task(escape_controls(description), total=total, note="")
        yield from bar.track(items, total=total, task_id=task)


def make_progress_bar(console: Console) -> Progress:
    """Return a progress bar whose tasks show how much is done, the time left, and their field `note`."""
    # Imported here, as in all of this package: rich takes a tenth of a second, and most imports print no bar.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),  # it may name a file
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)
