"""The base of tasks that read published corpora: checked files, and an order and splits that no file order decides."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from vilavt_components.tasks.exact_text import score_exact_text
from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.fields import hash_parts
from vilavt_toolkit.errors import InputError, UsageError

T = TypeVar("T")


class PublishedTask(Task, Generic[T]):
    """A task on a corpus as published, whose split `val` is cut from the published train split by group.

    `T` is an item of the corpus, from which a sample is made. A subclass sets `name` and `config`.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    config: Any
    """Its settings: `root`, `seed` and `val` among others."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises UsageError for an unknown one, InputError for its files."""
        self._check_split(split)
        return len(self._splits[split])

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return 1 if the answer is right but for case and outer spaces, else 0."""
        return score_exact_text(sample.answer, answer)

    @functools.cached_property
    @abstractmethod
    def _splits(self) -> dict[str, list[T]]:
        """The items of train, val and test in their order."""

    @functools.cached_property
    def _root(self) -> Path:
        """The folder of the corpus."""
        return corpus_folder(self.config.root, self.name)

    def _select_item(self, split: str, index: int) -> T:
        """Return the item at `index` of a split; raises IndexError beyond its end, UsageError for an unknown split."""
        self._check_split(split)
        items = self._splits[split]
        if not 0 <= index < len(items):
            raise IndexError(f"split '{split}' of '{self.name}' has {len(items)} samples, not one at index {index}.")
        return items[index]

    def _check_split(self, split: str) -> None:
        """Refuse a split that does not exist, or `val` if its share is 0; raises UsageError."""
        if split not in ("train", "val", "test"):
            raise UsageError(f"task '{self.name}' has no split '{split}'. Choose one of train, val, test.")
        if split == "val" and self.config.val == 0:
            raise UsageError(f"split 'val' of '{self.name}' is empty, since task.val is 0. Set it higher.")


# --- Splits and order ---------------------------------------------------------------------------------


def cut_validation(
    train: Sequence[T], test: Sequence[T], group_of: Callable[[T], str], share: float, seed: int
) -> Mapping[str, list[T]]:
    """Cut `val` from the published train split: whole groups, about `share` of them."""
    held_out = choose_held_out((group_of(item) for item in train), share, seed)
    return {
        "train": [item for item in train if group_of(item) not in held_out],
        "val": [item for item in train if group_of(item) in held_out],
        "test": list(test),
    }


def choose_held_out(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """Choose the groups of split val: `share` of them, never all, and at least one unless `share` is 0."""
    # Never all groups, since split train needs one too.
    known = shuffle_by_hash(set(groups), str, seed)
    return set(known[: min(max(share > 0, round(share * len(known))), len(known) - 1)]) if known else set()


def shuffle_by_hash(items: Iterable[T], key: Callable[[T], str], seed: int) -> list[T]:
    """Return items in an order that only their keys and the seed decide."""
    # A hash rather than a random generator: the order of the files, which may follow the labels, has no part in it,
    # and an item more or less leaves the order of the others as it is.
    return sorted(items, key=lambda item: (hash_parts(seed, key(item)), key(item)))


def hash_to_uniform(*parts: object) -> float:
    """Return a number in [0, 1) that `parts` decide."""
    return int(hash_parts(*parts), 16) / 16**16


# --- Files --------------------------------------------------------------------------------------------


def corpus_folder(root: str, task: str) -> Path:
    """Return the folder of a corpus; raises InputError if it does not exist."""
    try:
        folder = Path(root).expanduser()
        exists = folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, or an unknown home folder
        raise InputError(f"task '{task}': the folder {root!r} cannot be read ({error}). Set task.root.") from error
    if not exists:
        raise InputError(f"task '{task}': there is no folder {folder}. Set task.root to that of the corpus.")
    return folder


def read_corpus_text(file: Path) -> str:
    """Read the text of a corpus file; raises InputError."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist. Set task.root to the folder of the corpus as published.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}). Get the corpus again.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}). Check its permissions.") from error


def list_file_names(folder: Path) -> set[str]:
    """List the files in a folder of images; empty if there is no such folder. Raises InputError."""
    try:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}). Check its permissions.") from error
