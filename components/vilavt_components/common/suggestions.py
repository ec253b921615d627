"""Suggestions for a name that a library does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_SHOWN = 3


def unknown_name_message(what: str, name: str, known: Iterable[str], listing: str) -> str:
    """Return the message for an unknown `name`: `what` ("timm has no model"), the nearest names, how to list all."""
    near = [f"'{each}'" for each in nearest_names(name, known)]
    if not near:
        return f"{what} '{name}', and none at all."
    meant = f"{', '.join(near[:-1])} or {near[-1]}" if len(near) > 1 else near[0]
    return f"{what} '{name}'. Did you mean {meant}? To list all: python -c \"{listing}\"."


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the few known names that share most words with `name` and look most like it, best first, in any case.

    There is no threshold: a name that resembles nothing gets suggestions too.
    """
    # Letters alone would miss reordered words: "large_vit" is meant to find "vit_large".
    words, matcher = _split_words(name), SequenceMatcher(autojunk=False)
    matcher.set_seq2(name.lower())

    def score_likeness(other: str) -> float:
        matcher.set_seq1(other.lower())
        return len(words & _split_words(other)) / max(1, len(words)) + matcher.ratio()

    return sorted(known, key=lambda other: (-score_likeness(other), other))[:_SHOWN]


def _split_words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
