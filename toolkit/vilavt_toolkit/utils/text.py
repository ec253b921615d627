"""Values and lists of names, short enough for a sentence, and text that a terminal shows and does not obey."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_MOST_CHARACTERS = 60
MOST_QUOTED = 200
"""Characters of a user's value that an error may print."""

# Besides control characters: those that turn the direction of writing or break lines, and halves of surrogate pairs,
# which no stream can encode. Line feeds and tabs stay.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Write control characters as escapes, `\x1b`: in data, names and models' text they could steer a terminal."""
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


class PlainFormatter(logging.Formatter):
    """Formats log records with their control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return escape_controls(super().format(record))


def shorten_text(text: str, most: int = MOST_QUOTED) -> str:
    """Cut a text to `most` characters, its last ones `...` and its full length if it was longer."""
    end = f"... ({len(text):,} characters)"
    return text if len(text) <= most else text[: max(0, most - len(end))] + end


def format_value(value: Any) -> str:
    """Write a value and its type, cut to 60 characters: `'a' (str)`; None is written as YAML and JSON do, `null`."""
    if value is None:
        return "null"
    # `repr` would copy a text of megabytes.
    start = value[: _MOST_CHARACTERS + 1] if isinstance(value, str | bytes) else value
    try:
        text = repr(start)
    except (ValueError, RecursionError):  # Python writes no number of over 4,300 digits, and nothing nested deep
        text = "too long to show"
    short = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
    return f"{short} ({type(value).__name__})"


def shorten_list(names: Sequence[str], most: int = 3) -> str:
    """Join the first `most` names by commas, and say how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def number_duplicates(names: Sequence[str], separator: str) -> list[str]:
    """Append 2, 3, ... behind `separator` to names that come again, since metrics are kept by name."""
    counts: Counter[str] = Counter()
    numbered = []
    for name in names:
        counts[name] += 1
        numbered.append(name if counts[name] == 1 else f"{name}{separator}{counts[name]}")
    return numbered
