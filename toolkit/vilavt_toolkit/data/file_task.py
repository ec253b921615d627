"""Tasks on data files: splits, samples by number, and the checks before any of them is learned from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.checking import Checker, texts
from vilavt_toolkit.data.fields import BadRow, Fields, digest
from vilavt_toolkit.data.opening import open_rows
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.data.shards import expand
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.settings import setting

MOST_LISTED = 20
"""Problems that are told one by one where a file is refused."""

Names = list[str] | str


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """What the settings of every task on data files begin with."""

    files: Names = setting(help="data file or files; shards may be written like part-{000..010}.tar")
    root: str = setting("", help="folder that paths of images are relative to; empty: that of each data file")
    val_files: Names = setting(help="files of split val, in place of val_share", factory=list)
    test_files: Names = setting(help="files of split test", factory=list)
    val_share: float = setting(
        0.0, help="share of `files` held out as split val, images never shared with train", minimum=0, maximum=0.5
    )
    seed: int = setting(0, help="decides what is held out", minimum=0)
    ids: Literal["given", "place"] = setting(
        "given", help="what samples are called; place: by where they stand, for files that name several alike"
    )
    videos: bool = setting(False, help="whether samples may show videos; model.source must open them")


class FileTask(Task):
    """A task whose samples are rows of data files; a subclass says how a row reads. `__init__(config)`."""

    name: ClassVar[str]
    """The name it is registered under."""
    id_key: ClassVar[str] = "id"
    """The field that names a sample."""
    trains: ClassVar[bool] = True
    """Whether `files` are split train; else they are split test."""

    def __init__(self, config: FilesConfig) -> None:
        self.config = config
        self._corpora: dict[tuple[str, bool], Corpus] = {}
        self._splits: dict[str, NDArray[np.int64]] = {}

    @classmethod
    @abstractmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has the fields of this task's format; no other task may say so of the same row."""

    @abstractmethod
    def read(self, fields: Fields, training: bool) -> Sample:
        """The sample of a row, its id "" where it has none, its originals `Named`; complains of what is wrong.

        With `training`, as it is learned from; else as it is asked. What has problems is never used.
        """

    def length(self, split: str) -> int:
        """Number of samples of a split; raises InputError with what is wrong with its files."""
        return len(self._indices(split))

    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`, in the order of the files; IndexError beyond the split's end, InputError."""
        indices = self._indices(split)
        if not 0 <= index < len(indices):
            raise IndexError(f"split '{split}' of '{self.name}' has {len(indices)} samples; no {index}.")
        return self._corpus(self._source(split)).sample(int(indices[index]))

    def place(self, split: str, index: int) -> str:
        """Where the sample at `index` stands: its file, and its line there."""
        return self._corpus(self._source(split)).place(int(self._indices(split)[index]))

    def corpus(self) -> Iterator[str]:
        """The texts of the training samples."""
        for index in range(self.length("train")):
            yield from texts(self.sample("train", index))

    def root(self, rows: Rows) -> Path:
        """The folder that a file's paths are relative to."""
        return Path(self.config.root).expanduser() if self.config.root else rows.path.parent

    def _names(self, key: str) -> list[str]:
        value: Names = getattr(self.config, key)
        return [value] if isinstance(value, str) else list(value)

    def _source(self, split: str) -> tuple[str, bool]:
        """Where a split comes from: the setting that names its files, and whether they are learned from."""
        if split not in ("train", "val", "test"):
            raise UsageError(f"task '{self.name}' has no split '{split}'; choose one of train, val, test.")
        key = {"train": "files", "test": "test_files"}.get(split, "val_files" if self.config.val_files else "files")
        missing = split == "val" and key == "files" and not self.config.val_share
        if missing or (split == "test" and not self._names(key)):
            others = "task.val_files or task.val_share" if split == "val" else "task.test_files"
            raise UsageError(f"split '{split}' of '{self.name}' is empty; set {others}, or choose another split.")
        return key, split == "train"

    def _corpus(self, source: tuple[str, bool]) -> Corpus:
        """The rows that splits come from, checked when they are first asked for."""
        if source not in self._corpora:
            self._corpora[source] = Corpus(self, self._names(source[0]), training=source[1])
        return self._corpora[source]

    def _indices(self, split: str) -> NDArray[np.int64]:
        """The rows of a split, in the order of the files."""
        if split not in self._splits:
            source = self._source(split)
            corpus, share = self._corpus(source), self.config.val_share
            if source[0] != "files" or not share or self.config.val_files:
                self._splits[split] = np.arange(len(corpus))
            else:
                held = corpus.held_out(share, self.config.seed)
                self._splits[split] = np.flatnonzero(held if split == "val" else ~held)
        return self._splits[split]


class Corpus:
    """The checked rows of some files; raises InputError with what is wrong with them, all at once."""

    def __init__(self, task: FileTask, names: Sequence[str], training: bool) -> None:
        self.task, self.training = task, training
        self.files = [open_rows(path) for name in names for path in expand(name)]
        self._ends = np.cumsum([0, *map(len, self.files)])
        self._stems = _stems([rows.path for rows in self.files])
        self.groups = self._checked()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _checked(self) -> NDArray[np.uint64]:
        checker = Checker(self.task, self.training, Inspector())
        shown, count = [], 0
        for problem in (problem for rows in self.files for problem in checker.problems(rows)):
            count += 1
            if count <= MOST_LISTED:
                shown.append(f"  {problem}")
        if count:
            more = f"\n  and {count - MOST_LISTED} more" if count > MOST_LISTED else ""
            noun = "one problem" if count == 1 else f"{count:,} problems"
            raise InputError(
                f"task '{self.task.name}': its files have {noun}; mend them (`vilavt data check FILE` lists all):\n"
                + "\n".join(shown)
                + more
            )
        return np.frombuffer(checker.groups, dtype=np.uint64)

    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        """Which rows are held out: whole groups, `share` of them, but never all and never none."""
        known = np.unique(self.groups)
        order = np.array([int(digest(seed, int(group)), 16) for group in known], dtype=np.uint64)
        count = min(max(1, round(share * len(known))), len(known) - 1)
        return np.isin(self.groups, known[np.argsort(order)[:count]])

    def place(self, index: int) -> str:
        """The file of a row, and where it stands there."""
        number, row = self._found(index)
        return f"{self.files[number].path}, {self.files[number].place(row)}"

    def _found(self, index: int) -> tuple[int, int]:
        """The number of a row's file, and its own in that."""
        number = int(np.searchsorted(self._ends, index, side="right")) - 1
        return number, index - int(self._ends[number])

    def sample(self, index: int) -> Sample:
        """The sample of a row, its originals as `Source.open` takes them; raises InputError."""
        number, row = self._found(index)
        rows = self.files[number]
        try:
            value = rows.read(row)
            if not isinstance(value, Mapping):
                raise BadRow("is no JSON object.")
            fields = Fields(value)
            sample = self.task.read(fields, self.training)
            if fields.problems:
                raise BadRow("; ".join(f"{name} {what}" for name, what in fields.problems))
            root = self.task.root(rows)
            originals = tuple(rows.original(row, original.name, root) for original in sample.originals)
        except (BadRow, OSError) as error:
            raise InputError(
                f"{rows.path}, {rows.place(row)}: {error} It was right when the file was checked; start again."
            ) from error
        own = sample.id if sample.id and self.task.config.ids == "given" else str(row)
        return replace(sample, id=f"{self._stems[number]}/{own}", originals=originals)


def _stems(paths: Sequence[Path]) -> list[str]:
    """The names of files without suffix, with their number where two are alike."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)]
