"""The score of tasks with answers of one word, shared by generated and published ones."""

from __future__ import annotations


def score_exact_text(right: str, answer: str | None) -> float:
    """Return 1 if an answer equals the right one but for case and outer spaces, else 0."""
    return float(answer is not None and answer.strip().lower() == right.lower())
