"""Checks of data files row by row, before hours are spent on them: what is wrong, where, and what to do."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vilavt_toolkit.data.fields import BadRow, Fields, hash_parts
from vilavt_toolkit.data.named_originals import NamedOriginal
from vilavt_toolkit.data.originals import Inspector, Size
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.progress import track_progress
from vilavt_toolkit.utils.text import format_value, shorten_text

if TYPE_CHECKING:
    from vilavt_toolkit.contracts import Sample

PATCH = 28
"""Pixels along each side of one token of Qwen2.5-VL: the unit of image sizes where no recipe is given."""

_PROGRESS_FROM = 5000
"""Rows from which on a progress bar is shown."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file."""

    path: Path
    place: str
    field: str
    what: str
    """The problem and what to do; its subject is the field, or the row if `field` is empty."""

    def __str__(self) -> str:
        # The name of a field may be anything in a row, and so may the key of a sample in a shard.
        place, field = shorten_text(self.place, 100), shorten_text(self.field, 100)
        return f"{self.path}, {place}{f', {field}' if field else ''}: {self.what}"


@dataclass
class DataStatistics:
    """Counts over the rows that are right."""

    samples: int = 0
    images: int = 0
    videos: int = 0
    point_clouds: int = 0
    text_only: int = 0
    turns: int = 0
    # Arrays of 8 bytes a sample: a list of ints would take several times as much, and files have millions of rows.
    words: array[int] = field(default_factory=lambda: array("q"))
    """Words of each sample."""
    patches: array[int] = field(default_factory=lambda: array("q"))
    """Patches of the images of each sample, before any resizing."""
    unread: Counter[str] = field(default_factory=Counter)
    """Rows that have each field that nothing reads."""
    unreadable: int = 0
    """Samples that teach replies in which no dialogue finds an answer."""


class RowSettings(Protocol):
    """The settings of a task that decide what is right in a row."""

    @property
    def ids(self) -> str:
        """`given` if ids name samples."""

    @property
    def videos(self) -> bool:
        """True if samples may show videos."""


class RowReader(Protocol):
    """The part of a task on data files that the check needs: how a row is read. `FileTask` is one."""

    @property
    def id_key(self) -> str:
        """The field that names a sample."""

    @property
    def known_fields(self) -> tuple[str, ...]:
        """The fields that are read; empty: no field is called unknown."""

    @property
    def config(self) -> RowSettings:
        """The task's settings."""

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row, and note problems in `fields`."""

    def is_unreadable(self, sample: Sample) -> bool:
        """Return True if a training sample teaches a form in which no dialogue finds an answer."""

    def check_sizes(self, fields: Fields, sample: Sample, sizes: Sequence[Size | None]) -> None:
        """Note what is wrong with a sample whose images have these sizes; None is that of another original."""

    def root_folder(self, rows: Rows) -> Path:
        """Return the folder that the paths in a file are relative to."""


def find_group(rows: Rows, index: int, sample: Sample) -> str:
    """Return what the samples have in common that must be in one split: what they show, or nothing."""
    group = sample.tags.get("group") if rows.shares_originals else None
    return str(group) if group else f"{rows.path.name}/{index}"


class RowChecker:
    """Checks rows as a task reads them; `statistics` and `groups` grow with every row."""

    def __init__(self, task: RowReader, training: bool, inspector: Inspector) -> None:
        self.task, self.training, self.inspector = task, training, inspector
        self.statistics = DataStatistics()
        self.groups = array("Q")
        """A number for the group of every row, right or wrong."""
        self.first_places: dict[str, str] = {}
        """Place of the first original of each kind."""

    def find_problems(self, rows: Rows) -> Iterator[Problem]:
        """Yield everything that is wrong with the rows, in their order."""
        places: dict[str, int] = {}
        values = rows.scan_rows()
        if len(rows) >= _PROGRESS_FROM:
            values = track_progress(values, len(rows), f"checking {rows.path.name}")
        for index, value in enumerate(values):
            for where, what in self._check_row(rows, index, value, places):
                yield Problem(rows.path, rows.locate_row(index), where, what)

    def _check_row(self, rows: Rows, index: int, value: Any, places: dict[str, int]) -> list[tuple[str, str]]:
        """Return pairs (field, what is wrong); `places` holds the row of each id so far, by the id's hash."""
        self.groups.append(0)  # so that it has one number for each row, even for one that cannot be read
        if isinstance(value, BadRow):
            return [("", str(value))]
        if not isinstance(value, Mapping):
            return [("", f"is {format_value(value)}. It must be a JSON object.")]
        fields = Fields(value)
        sample = self.task.read_sample(fields, self.training)
        if self.task.known_fields:
            self.statistics.unread.update(fields.find_unknown(self.task.known_fields))
        self.groups[-1] = int(hash_parts(find_group(rows, index, sample)), 16)
        if sample.id and self.task.config.ids == "given":
            # By a hash of 16 characters, since ids may be long paths and all of them are kept.
            first = places.setdefault(hash_parts(sample.id), index)
            if first != index:
                what = f"'{shorten_text(sample.id, 60)}' is that of {rows.locate_row(first)} too."
                fields.add_problem(self.task.id_key, f"{what} Give each its own, or set task.ids=place.")
        patches = self._check_originals(rows, index, sample, fields)
        if not fields.problems:
            self._count_sample(sample, patches)
        return fields.problems

    def _check_originals(self, rows: Rows, index: int, sample: Sample, fields: Fields) -> int:
        """Inspect every original of a sample, and return the number of patches of all of them."""
        sizes: list[Size | None] = []
        for original in sample.originals:
            sizes.append(None)
            if not original.name:  # `read_sample` has noted this problem
                continue
            if original.kind not in self.first_places:
                self.first_places[original.kind] = f"{rows.path}, {rows.locate_row(index)}, {original.field}"
            try:
                sizes[-1] = self._check_original(rows, index, original)
            except BadRow as problem:
                fields.add_problem(original.field, str(problem))
        self.task.check_sizes(fields, sample, sizes)
        # Sides are rounded up to whole patches.
        return sum(-(-size[0] // PATCH) * -(-size[1] // PATCH) for size in sizes if size is not None)

    def _check_original(self, rows: Rows, index: int, original: NamedOriginal) -> tuple[int, int] | None:
        """Return the width and height of an image, None for another original; raises BadRow."""
        if original.kind == "video" and not self.task.config.videos:
            raise BadRow(
                f"{shorten_text(original.name)} is a video. Set task.videos=true and a model.source that opens "
                "videos, or give frames as images."
            )
        found = rows.resolve_original(index, original, self.task.root_folder(rows))
        # The place in the file stands before every problem already.
        found = replace(found, name=original.name) if isinstance(found, EmbeddedFile) else found
        return self.inspector.inspect(found, video=original.kind != "image")

    def _count_sample(self, sample: Sample, patches: int) -> None:
        statistics, kinds = self.statistics, Counter(original.kind for original in sample.originals)
        messages = sample.conversation.messages if sample.conversation is not None else ()
        statistics.samples += 1
        statistics.videos += kinds["video"]
        statistics.point_clouds += kinds["point_cloud"]
        statistics.images += kinds["image"]
        statistics.text_only += not sample.originals
        statistics.unreadable += self.task.is_unreadable(sample)
        statistics.turns += len(sample.trace) + sum(message.role == "assistant" for message in messages)
        statistics.words.append(sum(len(text.split()) for text in sample.texts()))
        statistics.patches.append(patches)
