"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.json_objects import load_unambiguous
from vilavt_toolkit.utils.text import shorten_text

COST_FILE = "cost.json"
"""The file of a run with the cost of its training."""


_LOST_SLASH = re.compile(r"(https?|ftp|s3|gs|hf|file):/(?!/)", re.IGNORECASE)
"""The beginning of an address that was made a `Path`, which keeps one slash of two or three."""


def find_address(name: str | os.PathLike[str]) -> str | None:
    """Return the web address that stands in the place of a path, shortened; None for a path or a `file:///path`."""
    text = _restore_slashes(name)
    return shorten_text(text) if "://" in text and text[:7].lower() != "file://" else None


def resolve_address(name: str | os.PathLike[str]) -> str:
    """Return the path that a text names, also as `file:///path`; raises InputError for a web address."""
    if address := find_address(name):
        raise InputError(f"{address} is a web address. Download it and give the path of the file.")
    text = _restore_slashes(name)
    return unquote(text[7:].removeprefix("localhost")) if text[:7].lower() == "file://" else text


def _restore_slashes(name: str | os.PathLike[str]) -> str:
    """Return a path as a text, and an address that was made a `Path` with the slashes that it lost."""
    text = os.fspath(name)
    lost = None if isinstance(name, str) else _LOST_SLASH.match(text)
    # Of file:///path the path begins with the third slash.
    return text if lost is None else f"{lost[1]}:/{'/' if lost[1].lower() == 'file' else ''}{text[len(lost[1]) + 1 :]}"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends well, and is removed if not.

    Missing folders are made. Raises InputError, naming `path`, if the file system refuses to write.
    """
    # In the same folder, since `os.replace` is atomic only within one file system. The random part keeps two processes
    # that write the same file apart.
    if address := find_address(path):
        raise InputError(_address_text(address))
    target = Path(path)
    if "\0" in str(target):
        raise InputError(f"{str(target)!r} cannot be written, since its name has a null byte. Choose another path.")
    # The suffix stays last: writers such as Pillow choose the format by it.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{target} cannot be written ({reason}). Choose another path or free some space.") from error
    finally:
        with suppress(OSError):  # it may not have been made, or has replaced the target
            temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError if `atomic_write` could not write `path`; called before hours are spent on its content."""
    if address := find_address(path):
        raise InputError(_address_text(address))
    target = Path(path)
    try:
        place = next(parent for parent in (target.parent, *target.parent.parents) if parent.exists())
        if target.is_dir():
            reason = "it is a folder"
        elif not place.is_dir():
            reason = f"{place} is no folder"
        elif not os.access(place, os.W_OK | os.X_OK):
            reason = f"nothing may be written in {place}"
        else:
            return
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"{shorten_text(str(target))} cannot be written ({reason}). Choose another path.")


def _address_text(address: str) -> str:
    return f"{address} is a web address and cannot be written. Choose a path on this machine."


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data`, atomically; raises InputError."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically; raises InputError."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; raises InputError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def require_no_device(path: Path) -> None:
    """Raise OSError for a folder, a pipe or a device, which could be read for ever. `open` tells of a missing file."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file but a folder, a pipe or a device")


def read_plain_text(path: Path) -> str:
    """Read a file of UTF-8 text; raises OSError, also for what is no file, and UnicodeDecodeError."""
    require_no_device(path)
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises OSError, and ValueError for no JSON, a key twice in one object, or too deep nesting."""
    try:
        return load_unambiguous(read_plain_text(path))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def check_plain_files(paths: Iterable[Path]) -> None:
    """Raise InputError for a path that is neither file nor folder, or is a pointer of git-lfs.

    A pipe would be waited for without end. A clone without git-lfs leaves such pointers in place of large files.
    """
    for path in paths:
        if path.is_dir():
            continue
        if not path.is_file():
            raise InputError(f"{path} is no file but a pipe, a device or a broken link. Copy the file again.")
        # A pointer has three lines.
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs."):
            raise InputError(f"{path} is a pointer of git-lfs in place of the file. Fetch it: git lfs pull.")


def hash_file(path: Path, most: int = 1 << 26) -> str:
    """Return a hash of a file; of one above `most` bytes, a hash of its length and of `most` bytes at its ends."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        if size <= most:
            digest.update(file.read())
        else:
            # Shards may hold hundreds of gigabytes. An edit nearly always changes length or ends.
            digest.update(f"{size} ".encode() + file.read(most // 2))
            file.seek(-(most // 2), os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()
