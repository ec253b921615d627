"""Checks that a recipe's source opens what the rows of its data files name, before anything is built."""

from __future__ import annotations

from vilavt_toolkit.contracts import Source, Task
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.data.splits import has_split
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import Part, sources

_NOUNS = {"image": "an image", "video": "a video", "point_cloud": "a point cloud"}


def check_sources(task: Task, source: Part, split: str) -> None:
    """Raise InputError with the first original of a split of data files that `source` cannot open; other tasks pass."""
    for each in task.parts():
        # A part of a mixture may lack a split that the others have.
        if each is not task and has_split(each, split):
            check_sources(each, source, split)
    # Other tasks make their originals themselves, or read a corpus whose kind is known.
    if not isinstance(task, FileTask):
        return
    opened = _list_kinds(source.entry.cls)
    if task.config.videos and "video" not in opened:
        raise UsageError(
            f"task.videos is true, and model.source '{source.entry.name}' opens no videos. Set {_suggest('video')}, or "
            "task.videos=false."
        )
    for kind, place in task.first_places(split).items():
        if kind in _NOUNS and kind not in opened:
            raise InputError(
                f"{place} is {_NOUNS[kind]}, and model.source '{source.entry.name}' opens none. Set {_suggest(kind)}."
            )


def _list_kinds(source: type[Source]) -> tuple[str, ...]:
    return source.opens or (source.modality,)


def _suggest(kind: str) -> str:
    """Say which sources open originals of a kind."""
    names = [entry.name for entry in sources.entries() if kind in _list_kinds(entry.cls)]
    return f"model.source={' or '.join(names)}" if names else "another model.source"
