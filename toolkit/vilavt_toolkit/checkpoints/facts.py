"""Facts of a checkpoint's folder: its format and step, and whether its files can be read at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import InputError, RunError
from vilavt_toolkit.utils.files import check_plain_files, read_json
from vilavt_toolkit.utils.text import format_value

FORMAT = 2
"""The number of the format that is written. It rises when an older toolkit would misread a new checkpoint."""

ADAPTERS_KEY = "adapters"
"""Key of the adapters that the weights have. Toolkits that do not know it refuse the names of these weights."""
_FACTS_FILE = "checkpoint.json"
_MOST = 10**12
"""No step or format comes near this number. What lies above is damage."""


def read_step(folder: Path) -> int:
    """Check a checkpoint's format and files, and return its step; raises RunError."""
    _, step = _read_format_and_step(folder)
    return step


def is_format1(folder: Path) -> bool:
    """Return True if a checkpoint is of format 1; raises RunError."""
    # Only format 1 wrote the reference weights of a reinforcement run without this file.
    if not (folder / _FACTS_FILE).is_file():
        return True
    number, _ = _read_format_and_step(folder)
    return number == 1


def read_adapters(folder: Path) -> dict[str, Any] | None:
    """Return the plain data of the adapters that a checkpoint's weights have; None if they have none."""
    if not (folder / _FACTS_FILE).is_file():
        return None
    facts: dict[str, Any] = read_json(folder / _FACTS_FILE)
    return facts.get(ADAPTERS_KEY)


def _read_format_and_step(folder: Path) -> tuple[int, int]:
    # Checked before anything else is read: a newer format may have changed everything but this file.
    file = folder / _FACTS_FILE
    try:
        check_plain_files(folder.rglob("*"))
        facts = read_json(file)
        if not isinstance(facts, dict):
            raise ValueError("it holds no mapping")
        for key in ("format", "step"):
            # `type`, not isinstance: JSON's true is an int for isinstance.
            if type(facts.get(key)) is not int or not 0 <= facts[key] < _MOST:
                raise ValueError(f"its {key} is {format_value(facts.get(key))}, where a number must stand")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). Use another checkpoint of the run.") from error
    except InputError as error:
        raise RunError(f"{error} Or use another checkpoint of the run.") from error
    number, step = facts["format"], facts["step"]
    if number > FORMAT:
        raise RunError(
            f"{file}: format {number} is newer than {FORMAT}, which this version reads. Update vilavt-toolkit."
        )
    return number, step
