"""Progress bars with time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield items under a progress bar on stderr that shows how many are done and the time left."""
    from rich.console import Console

    with progress(Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, said="")
        yield from bar.track(items, total=total, task_id=task)


def progress(console: Console) -> Progress:
    """A progress bar whose tasks show what is done, the time left, and their field `said`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=console)
