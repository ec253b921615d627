"""Values and lists of names, short enough for a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MOST_CHARACTERS = 60


def format_value(value: Any) -> str:
    """Write a value and its type, cut to 60 characters: `'a' (str)`; None is written as YAML and JSON do, `null`."""
    if value is None:
        return "null"
    text = repr(value)
    short = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
    return f"{short} ({type(value).__name__})"


def shorten_list(names: Sequence[str], most: int = 3) -> str:
    """Join the first `most` names by commas, and say how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
