"""Objects of JSON whose keys stand once: of two values the library takes the last without a word."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_BETWEEN = re.compile(r"[ \t\r\n,]*")
"""Blanks and the comma between two items of a list."""


class RepeatedKey(ValueError):
    """Raised for an object that has a key twice; `key` is the first such key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key = key


def load_unambiguous(text: str) -> Any:
    """Parse JSON; raises RepeatedKey for a key that stands twice in one object, else what `json.loads` raises."""
    return json.loads(text, object_pairs_hook=_build_object)


def find_repeating_item(text: str) -> int:
    """Return the offset in a JSON list of its first item that has a key twice, 0 if none is found."""
    decoder, place = json.JSONDecoder(object_pairs_hook=_build_object), text.find("[") + 1
    while place < len(text):
        # Always found: it may be empty.
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        try:
            _, place = decoder.raw_decode(text, place)
        except RepeatedKey:
            return place
        except (ValueError, RecursionError):
            break
    return 0


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise RepeatedKey(next(key for key, count in counts.items() if count > 1))
    return found
