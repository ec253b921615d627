"""What a user may have meant by a name that a library does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_SHOWN = 3


def unknown(what: str, name: str, known: Iterable[str], listing: str) -> str:
    """Say that `what` ("timm has no model") has no `name`, what is nearest of the `known`, and how to list them all."""
    near = [f"'{each}'" for each in nearest(name, known)]
    if not near:
        return f"{what} '{name}', and none at all."
    meant = f"{', '.join(near[:-1])} or {near[-1]}" if len(near) > 1 else near[0]
    return f"{what} '{name}'. Did you mean {meant}? To list all: python -c \"{listing}\"."


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The few known names that share most words with `name` and look most like it, best first; capitals do not count.

    However far off a name is, there are some.
    """
    words, matcher = _words(name), SequenceMatcher(autojunk=False)
    matcher.set_seq2(name.lower())

    def likeness(other: str) -> float:
        matcher.set_seq1(other.lower())
        return len(words & _words(other)) / max(1, len(words)) + matcher.ratio()

    return sorted(known, key=lambda other: (-likeness(other), other))[:_SHOWN]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
