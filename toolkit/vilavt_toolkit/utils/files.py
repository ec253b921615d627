"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import InputError

COST = "cost.json"
"""The file of a run that says what its training cost."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block ends well, and goes if not.

    Missing folders are made. Raises InputError, naming `path`, for what the file system refuses.
    """
    target = Path(path)
    # The suffix stays last: writers such as Pillow choose the format by it.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{target} cannot be written ({reason}); choose another path or make room.") from error
    finally:
        with suppress(OSError):  # where it could not be made it need not go
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically; raises InputError."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; raises InputError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
