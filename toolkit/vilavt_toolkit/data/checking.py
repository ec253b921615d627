"""Checks data files row by row before hours are spent on them: what is wrong, where, and what to do."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.data.fields import BadRow, Fields, digest, shown
from vilavt_toolkit.data.originals import Inspector, Named
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.utils.progress import track

if TYPE_CHECKING:
    from vilavt_toolkit.contracts import Sample
    from vilavt_toolkit.data.file_task import FileTask

PATCH = 28
"""Pixels along each side of what Qwen2.5-VL makes one token of; how sizes are told where no recipe is given."""

_LONG = 5000
"""Rows from which on a progress bar is shown."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file."""

    path: Path
    place: str
    field: str
    what: str
    """What is wrong and what to do, as said of the field, or of the row where there is none."""

    def __str__(self) -> str:
        return f"{self.path}, {self.place}{f', {self.field}' if self.field else ''}: {self.what}"


@dataclass
class Facts:
    """What was counted in the rows that are right."""

    samples: int = 0
    images: int = 0
    videos: int = 0
    text_only: int = 0
    turns: int = 0
    words: array[int] = field(default_factory=lambda: array("q"))
    """Words of every sample."""
    patches: array[int] = field(default_factory=lambda: array("q"))
    """Patches of the images of every sample, before any resizing."""


class Checker:
    """Checks rows as a task reads them; `facts` and `groups` grow with every row."""

    def __init__(self, task: FileTask, training: bool, inspector: Inspector) -> None:
        self.task, self.training, self.inspector = task, training, inspector
        self.facts = Facts()
        self.groups = array("Q")
        """A number for the group of every row, right or wrong."""

    def problems(self, rows: Rows) -> Iterator[Problem]:
        """Everything that is wrong with the rows, in their order."""
        places: dict[str, int] = {}
        values = rows.scan()
        if len(rows) >= _LONG:
            values = track(values, len(rows), f"checking {rows.path.name}")
        for index, value in enumerate(values):
            for where, what in self._of_row(rows, index, value, places):
                yield Problem(rows.path, rows.place(index), where, what)

    def _of_row(self, rows: Rows, index: int, value: Any, places: dict[str, int]) -> list[tuple[str, str]]:
        self.groups.append(0)
        if isinstance(value, BadRow):
            return [("", str(value))]
        if not isinstance(value, Mapping):
            return [("", f"is {shown(value)}; it must be a JSON object.")]
        fields = Fields(value)
        sample = self.task.read(fields, self.training)
        self.groups[-1] = int(digest(sample.tags.get("group") or f"{rows.path.name}/{index}"), 16)
        if sample.id and self.task.config.ids == "given":
            first = places.setdefault(digest(sample.id), index)
            if first != index:
                what = f"'{sample.id}' is that of {rows.place(first)} too; give each its own, or set task.ids to place."
                fields.complain(self.task.id_key, what)
        patches = self._look_at_all(rows, index, sample, fields)
        if not fields.problems:
            self._count(sample, patches)
        return fields.problems

    def _look_at_all(self, rows: Rows, index: int, sample: Sample, fields: Fields) -> int:
        """Look at every original; the patches of all of them."""
        patches = 0
        for original in sample.originals:
            if not original.name:  # which was complained of when it was read
                continue
            try:
                size = self._look(rows, index, original)
            except BadRow as problem:
                fields.complain(original.field, str(problem))
                continue
            if size is not None:
                patches += -(-size[0] // PATCH) * -(-size[1] // PATCH)
        return patches

    def _look(self, rows: Rows, index: int, original: Named) -> tuple[int, int] | None:
        if "://" in original.name:
            raise BadRow(f"{original.name} is a web address; download it and give the path of the file.")
        if original.video and not self.task.config.videos:
            raise BadRow(
                f"{original.name} is a video; set model.source to one of videos and task.videos to true, or give "
                "frames as images."
            )
        there = rows.original(index, original.name, self.task.root(rows), decode=False)
        return self.inspector.look(there, original.video)

    def _count(self, sample: Sample, patches: int) -> None:
        facts, videos = self.facts, sum(original.video for original in sample.originals)
        facts.samples += 1
        facts.videos += videos
        facts.images += len(sample.originals) - videos
        facts.text_only += not sample.originals
        facts.turns += sum(message.role == "assistant" for message in _messages(sample))
        facts.words.append(sum(len(text.split()) for text in texts(sample)))
        facts.patches.append(patches)


def _messages(sample: Sample) -> tuple[Any, ...]:
    return sample.conversation.messages if sample.conversation is not None else ()


def texts(sample: Sample) -> Iterator[str]:
    """The texts of a sample: its conversation, or its question and answer."""
    if sample.conversation is None:
        yield from (sample.question, sample.answer)
    for message in _messages(sample):
        yield from (part for part in message.content if isinstance(part, str))
