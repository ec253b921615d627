"""What the readers of published corpora share: checked files, and an order and splits that no file order decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from vilavt_toolkit.errors import InputError, UsageError

T = TypeVar("T")


def digest(*parts: object) -> str:
    """Sixteen hexadecimal figures that tell these parts from others, and nothing else of them."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def chance(*parts: object) -> float:
    """A number in [0, 1) that these parts decide."""
    return int(digest(*parts), 16) / 16**16


def mixed(items: Iterable[T], key: Callable[[T], str], seed: int) -> list[T]:
    """The items in an order that their keys and the seed decide, whatever order they come in."""
    return sorted(items, key=lambda item: (digest(seed, key(item)), key(item)))


def held_out(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """The groups set aside for validation: `share` of them, but never all, and at least one where share is not 0."""
    known = mixed(set(groups), str, seed)
    return set(known[: min(max(share > 0, round(share * len(known))), len(known) - 1)]) if known else set()


def select(splits: dict[str, list[T]], task: str, split: str, index: int) -> T:
    """The item at `index` of a split; raises IndexError beyond its end."""
    rows = splits[split]
    if not 0 <= index < len(rows):
        raise IndexError(f"split '{split}' of '{task}' has {len(rows)} samples; no {index}.")
    return rows[index]


def check_split(task: str, split: str, val: float) -> None:
    """Raise UsageError for a split that is none, or is `val` where its share is 0."""
    if split not in ("train", "val", "test"):
        raise UsageError(f"task '{task}' has no split '{split}'; choose one of train, val, test.")
    if split == "val" and val == 0:
        raise UsageError(f"split 'val' of '{task}' is empty, since task.val is 0; set it higher.")


def folder_of(root: str, task: str) -> Path:
    """The folder of a corpus; raises InputError where there is none."""
    try:
        folder = Path(root).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long, an unknown home
        raise InputError(f"task '{task}': the folder {root!r} cannot be read ({error}); set task.root.") from error
    if not there:
        raise InputError(f"task '{task}': there is no folder {folder}; set task.root to that of the corpus.")
    return folder


def read_text(file: Path) -> str:
    """The text of a corpus file; raises InputError."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; task.root must be the folder of the corpus as published.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); get the corpus again.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check its permissions.") from error


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder of images; empty where there is none. Raises InputError."""
    try:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
