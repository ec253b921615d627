"""Tasks on data files: splits, samples by number, and the check before any of them is learned from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.fields import BadRow, Fields, hash_parts
from vilavt_toolkit.data.opening import open_rows
from vilavt_toolkit.data.originals import Inspector, Size
from vilavt_toolkit.data.row_checker import RowChecker, find_group
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.data.shards import expand_braces
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.files import hash_file

_LONGEST_ID = 100
"""Characters of an id that is printed as it is."""
MOST_LISTED = 20
"""Problems listed one by one in the error that refuses a file."""

FileNames = list[str] | str


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Settings that every task on data files begins with."""

    files: FileNames = setting(
        help="data file or files: JSON, CSV, parquet, a datasets folder, shards as part-{000..010}.tar", is_path=True
    )
    root: str = setting(
        "", help="folder that paths of images are relative to (empty: that of each data file)", is_path=True
    )
    val_files: FileNames = setting(help="files of split val, in place of val_share", factory=list, is_path=True)
    test_files: FileNames = setting(help="files of split test", factory=list, is_path=True)
    val_share: float = setting(
        0.0, help="share of `files` held out as split val, images never shared with train", minimum=0, maximum=0.5
    )
    seed: int = setting(0, help="seed that decides what is held out", minimum=0)
    ids: Literal["given", "place"] = setting(
        "given", help="names of samples: their own ids, or their place in the file (for files with repeated ids)"
    )
    videos: bool = setting(False, help="allow samples that show videos, which model.source must open")


class FileTask(Task):
    """A task whose samples are rows of data files; a subclass says how to read a row. `__init__(config)`."""

    name: ClassVar[str]
    """The name it is registered under."""
    id_key: ClassVar[str] = "id"
    """The field that names a sample."""
    trains: ClassVar[bool] = True
    """True if `files` are split train; else they are split test."""
    has_traces: ClassVar[bool] = True
    """True if samples may have traces, which the supervised stage learns from."""
    known_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of a row that are read. The check names others, and refuses those that look misspelt."""

    def __init__(self, config: FilesConfig) -> None:
        self.config = config
        self._corpora: dict[tuple[str, bool], Corpus] = {}
        self._splits: dict[str, NDArray[np.int64]] = {}

    @classmethod
    @abstractmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row has the fields of this task's format. No two tasks may recognise the same row."""

    @abstractmethod
    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row, its id "" if it has none, its originals as `NamedOriginal`.

        Problems are noted with `Fields.add_problem`, and a sample with problems is never used. With `training`, the
        sample is what is learned from; else what is asked.
        """

    def check_sizes(self, fields: Fields, sample: Sample, sizes: Sequence[Size | None]) -> None:
        """Note what is wrong with a sample whose images have these sizes; None is that of another original."""
        return

    def is_unreadable(self, sample: Sample) -> bool:
        """Return True if a training sample, as it is, teaches a form in which no dialogue finds an answer."""
        return False

    def vary_sample(self, sample: Sample) -> Sample:
        """Return a training sample as it is learned from, if that differs from its row; pure in the sample and seed."""
        return sample

    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises InputError with what is wrong with its files."""
        return len(self._split_rows(split))

    def fingerprint(self, split: str) -> str:
        """Return a hash of the data files of a split; of large files, of their ends and length."""
        files = self._load_corpus(self._split_source(split)).files
        return hash_parts(*(hash_file(rows.path) for rows in files))

    def sample(self, split: str, index: int) -> Sample:
        """Read the sample at `index`, in the order of the files; raises IndexError or InputError."""
        rows = self._split_rows(split)
        if not 0 <= index < len(rows):
            raise IndexError(f"split '{split}' of '{self.name}' has {len(rows)} samples, so there is no {index}.")
        return self._load_corpus(self._split_source(split)).read_sample(int(rows[index]))

    def training_sample(self, split: str, index: int) -> Sample:
        """Read the sample at `index` as it is learned from, whatever the split; raises IndexError or InputError."""
        rows = self._split_rows(split)
        if not 0 <= index < len(rows):
            raise IndexError(f"split '{split}' of '{self.name}' has {len(rows)} samples, so there is no {index}.")
        return self._load_corpus((self._split_source(split)[0], True)).read_sample(int(rows[index]))

    def first_places(self, split: str) -> Mapping[str, str]:
        """Return where the first original of each kind stands in the files of a split; raises InputError."""
        return self._load_corpus(self._split_source(split)).first_places

    def locate_sample(self, split: str, index: int) -> str:
        """Return the file of the sample at `index`, and its line there."""
        return self._load_corpus(self._split_source(split)).locate_row(int(self._split_rows(split)[index]))

    def corpus(self) -> Iterator[str]:
        """Yield the texts of the training samples."""
        for index in range(self.length("train")):
            yield from self.sample("train", index).texts()

    def root_folder(self, rows: Rows) -> Path:
        """Return the folder that the paths in a file are relative to."""
        return Path(self.config.root).expanduser() if self.config.root else rows.path.parent

    def _file_names(self, key: str) -> list[str]:
        value: FileNames = getattr(self.config, key)
        return [value] if isinstance(value, str) else list(value)

    def _split_source(self, split: str) -> tuple[str, bool]:
        """Return the setting that names a split's files, and True if they are learned from."""
        if split not in ("train", "val", "test"):
            raise UsageError(f"task '{self.name}' has no split '{split}'. Choose one of train, val, test.")
        key = {"train": "files", "test": "test_files"}.get(split, "val_files" if self.config.val_files else "files")
        # Without val_files, split val is a share of `files`; with neither it does not exist.
        is_missing = split == "val" and key == "files" and not self.config.val_share
        if is_missing or (split == "test" and not self._file_names(key)):
            others = "task.val_files or task.val_share" if split == "val" else "task.test_files"
            raise UsageError(f"split '{split}' of '{self.name}' is empty. Set {others}, or choose another split.")
        # The same row reads otherwise in split val: it is asked there. Hence two corpora of one file.
        return key, split == "train"

    def _load_corpus(self, source: tuple[str, bool]) -> Corpus:
        """Return the rows that a split is taken from. They are checked when they are first asked for."""
        if source not in self._corpora:
            self._corpora[source] = Corpus(self, self._file_names(source[0]), training=source[1])
        return self._corpora[source]

    def _split_rows(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of the rows of a split, in the order of the files."""
        if split not in self._splits:
            source = self._split_source(split)
            corpus, share = self._load_corpus(source), self.config.val_share
            if source[0] != "files" or not share or self.config.val_files:
                self._splits[split] = np.arange(len(corpus))
            else:
                held_out = corpus.select_held_out(share, self.config.seed)
                self._splits[split] = np.flatnonzero(held_out if split == "val" else ~held_out)
        return self._splits[split]


class Corpus:
    """The checked rows of some files; raises InputError with everything that is wrong with them."""

    def __init__(self, task: FileTask, names: Sequence[str], training: bool) -> None:
        self.task, self.training = task, training
        self.files = [open_rows(path) for name in names for path in expand_braces(name)]
        # Entry k is the number of rows before file k.
        self._starts = np.cumsum([0, *map(len, self.files)])
        self._stems = _unique_stems([rows.path for rows in self.files])
        self.first_places: Mapping[str, str] = {}
        """Place of the first original of each kind."""
        self.groups = self._check_rows()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _check_rows(self) -> NDArray[np.uint64]:
        """Return the group of every row; raises InputError."""
        checker = RowChecker(self.task, self.training, Inspector())
        lines: list[str] = []
        count = 0
        # A file of a million rows may have a million problems: only those to be listed are kept.
        for rows in self.files:
            for problem in checker.find_problems(rows):
                count += 1
                if count <= MOST_LISTED:
                    lines.append(f"  {problem}")
        if count:
            more = f"\n  and {count - MOST_LISTED} more" if count > MOST_LISTED else ""
            noun = "one problem" if count == 1 else f"{count:,} problems"
            raise InputError(
                f"task '{self.task.name}': its files have {noun}. Correct them (`vilavt data check FILE` lists all):\n"
                + "\n".join(lines)
                + more
            )
        self.first_places = checker.first_places
        return np.frombuffer(checker.groups, dtype=np.uint64)

    def select_held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        """Return a mask of the rows that are held out: whole groups, `share` of them, never all and never none.

        Raises UsageError if there is one group only.
        """
        groups = np.unique(self.groups)
        if len(groups) == 1:
            raise UsageError(
                f"task.val_share {share} leaves split 'val' empty: all {len(self):,} samples of {self.files[0].path} "
                "show the same first image, and no image is in two splits. Set task.val_files, or task.val_share=0."
            )
        # Ordered by a hash, not shuffled: a row that is added later changes the split of few others.
        order = np.array([int(hash_parts(seed, int(group)), 16) for group in groups], dtype=np.uint64)
        count = min(max(1, round(share * len(groups))), len(groups) - 1)
        return np.isin(self.groups, groups[np.argsort(order)[:count]])

    def locate_row(self, index: int) -> str:
        """Return the file of a row, and where it stands there."""
        number, row = self._find_row(index)
        return f"{self.files[number].path}, {self.files[number].locate_row(row)}"

    def _find_row(self, index: int) -> tuple[int, int]:
        """Return the number of a row's file, and the row's number in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def read_sample(self, index: int) -> Sample:
        """Read the sample of a row, its originals as `Source.open` takes them; raises InputError."""
        number, row = self._find_row(index)
        rows = self.files[number]
        try:
            value = rows.read_row(row)
            if not isinstance(value, Mapping):
                raise BadRow("is no JSON object.")
            fields = Fields(value)
            sample = self.task.read_sample(fields, self.training)
            if fields.problems:
                raise BadRow(" ".join(f"{name} {what}" for name, what in fields.problems))
            root = self.task.root_folder(rows)
            originals = tuple(rows.resolve_original(row, original, root) for original in sample.originals)
        # Every row passed the check when the task was made, so the file has changed while it was in use.
        except (BadRow, OSError) as error:
            raise InputError(
                f"{rows.path}, {rows.locate_row(row)}: {error} It was right when the file was checked. Start again."
            ) from error
        own = _shorten_id(sample.id) if sample.id and self.task.config.ids == "given" else str(row)
        tags = {**sample.tags, "group": find_group(rows, row, sample)} if "group" in sample.tags else sample.tags
        sample = replace(sample, id=f"{self._stems[number]}/{own}", originals=originals, tags=tags)
        return self.task.vary_sample(sample) if self.training else sample


def _shorten_id(name: str) -> str:
    """Return an id that errors can print: a long one by its beginning and a hash of it all."""
    return name if len(name) <= _LONGEST_ID else f"{name[:_LONGEST_ID]}...{hash_parts(name)}"


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """Return the names of files without suffix, with the file's number where two are equal."""
    # Ids of samples begin with these: files of one name in several folders may hold the same ids.
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)]
