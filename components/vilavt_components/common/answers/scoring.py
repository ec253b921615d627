"""Scores of answers by their kind, for reward `answer` and for the tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from vilavt_components.common.answers.boxes import read_box, region_box_iou
from vilavt_components.common.answers.math import is_same_value
from vilavt_components.common.answers.reading import (
    is_same_number,
    is_same_text,
    read_choice,
    read_moves,
    read_number,
    read_yes_no,
)
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.text import shorten_text

T = TypeVar("T")
AnswerKind = Literal["text", "choice", "number", "mra", "math", "yes_no", "box", "view_change"]

REINFORCEMENT_KINDS: Mapping[str, AnswerKind] = {
    "multiple choice": "choice",
    "math": "math",
    "numerical": "mra",
    "regression": "mra",
    "judgment": "yes_no",
}
"""The kind of answer of every question type in the paper's data for reinforcement learning."""
BENCHMARK_KINDS: Mapping[str, AnswerKind] = {**REINFORCEMENT_KINDS, "numerical": "number", "vci": "view_change"}
"""The same for the paper's benchmarks, where a number is right or wrong, not graded."""


def answer_kind_of(question_type: str, kinds: Mapping[str, AnswerKind], where: str) -> AnswerKind:
    """Return the kind of answer of a question type, in any case; raises InputError that names the place `where`."""
    kind = kinds.get(" ".join(question_type.casefold().split()))
    if kind is None:
        raise InputError(f"{where}: the question type is '{question_type}'. It must be one of {', '.join(kinds)}.")
    return kind


@dataclass(frozen=True)
class Comparison:
    """Holds how exact an answer must be."""

    tolerance: float = 0.0
    """Relative error that a number may have."""
    strict: bool = False
    """True if a relative error must be below a threshold of mean relative accuracy, and may not equal it."""
    iou: float | None = 0.5
    """Least intersection over union of a right box; None makes the overlap itself the score."""


def score_answer(sample: Sample, answer: str | None, kind: str = "auto", how: Comparison | None = None) -> float:
    """Return the score of an answer in [0, 1], 0 for a missing or empty one.

    `kind` "auto" stands for the sample's tag `answer_kind`, or "text" without that tag. Raises InputError if the
    sample's own answer is empty or cannot be read.
    """
    if kind == "auto":
        kind = str(sample.tags.get("answer_kind", "text"))
    if kind not in _SCORES:
        known = ", ".join(_SCORES)
        raise InputError(f"sample {sample.id}: its tag answer_kind is '{kind}'. It must be one of {known}.")
    # A test split without published answers would score 0 everywhere, and look like a bad model.
    if not sample.answer.strip():
        raise InputError(f"sample {sample.id} has no answer to compare with. Take another split.")
    if answer is None or not answer.strip():
        return 0.0
    return float(_SCORES[kind](sample, answer, how or Comparison()))


def mean_relative_accuracy(found: Fraction, truth: Fraction, strict: bool = False) -> float:
    """Return the share of the thresholds .50, .55, ..., .95 that 1 - |found - truth| / |truth| reaches.

    The metric of VSI-Bench (arXiv 2412.14171), computed exactly: an error of .25 reaches the threshold .75, except with
    `strict`. If the truth is 0, only 0 scores.
    """
    error = abs(found - truth)
    return _share_of_thresholds(error, abs(truth), strict) if truth else float(not error)


def view_change_accuracy(found: Mapping[str, Fraction], truth: Mapping[str, Fraction]) -> float:
    """Return the mean over five axes of the mean relative accuracy of the movement along each.

    The metric of SPAR-Bench (arXiv 2503.22976). On an axis without true movement any movement scores 0.
    """
    scores = []
    for ahead, back in MOVE_AXES:
        moved, wanted = (each.get(ahead, Fraction()) - each.get(back, Fraction()) for each in (found, truth))
        scores.append(mean_relative_accuracy(moved, wanted))
    return sum(scores) / len(scores)


MOVE_AXES = (
    ("move_right", "move_left"),
    ("move_up", "move_down"),
    ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"),
    ("rotate_up", "rotate_down"),
)
"""Opposite moves of SPAR-Bench, whose difference is the movement along an axis."""
_MOVES = frozenset(name for axis in MOVE_AXES for name in axis)


def _share_of_thresholds(error: Fraction, unit: Fraction, strict: bool) -> float:
    # Threshold 1 - s / 20 is reached if error / unit <= s / 20: in whole numbers, so that no rounding decides a tie.
    limits = (step * unit for step in range(1, 11))
    return sum(20 * error < limit or (not strict and 20 * error == limit) for limit in limits) / 10


def _require_readable(truth: T | None, sample: Sample, what: str) -> T:
    if truth is None:
        raise InputError(
            f"sample {sample.id}: its answer {shorten_text(repr(sample.answer))} is no {what}. Correct it, or its tag "
            "answer_kind."
        )
    return truth


def _score_text(sample: Sample, answer: str, how: Comparison) -> bool:
    return is_same_text(sample.answer, answer)


def _score_choice(sample: Sample, answer: str, how: Comparison) -> bool:
    options: Sequence[str] = tuple(sample.tags.get("options", ()))
    truth = _require_readable(read_choice(sample.answer, options), sample, "letter or option")
    return read_choice(answer, options) == truth


def _score_yes_no(sample: Sample, answer: str, how: Comparison) -> bool:
    return read_yes_no(answer) == _require_readable(read_yes_no(sample.answer), sample, "yes or no")


def _score_number(sample: Sample, answer: str, how: Comparison) -> bool:
    truth, found = _require_readable(read_number(sample.answer), sample, "number"), read_number(answer)
    return found is not None and is_same_number(truth, found, how.tolerance)


def _score_mra(sample: Sample, answer: str, how: Comparison) -> float:
    truth, percent = _require_readable(read_number(sample.answer), sample, "number")
    found = read_number(answer)
    if found is None:
        return 0.0
    # If the truth is 25%, the answer "25" means 25%, and "0.25" is the same number.
    readings = [found[0], found[0] / 100] if percent and not found[1] else [found[0]]
    return max(mean_relative_accuracy(reading, truth, how.strict) for reading in readings)


def _score_math(sample: Sample, answer: str, how: Comparison) -> bool:
    return is_same_value(sample.answer, answer)


def _score_box(sample: Sample, answer: str, how: Comparison) -> float:
    truth, found = _require_readable(read_box(sample.answer), sample, "box"), read_box(answer)
    shared = 0.0 if found is None else region_box_iou(truth, found)
    return shared if how.iou is None else float(shared >= how.iou)


def _score_view_change(sample: Sample, answer: str, how: Comparison) -> float:
    truth = _require_readable(
        read_moves(sample.answer, _MOVES), sample, "list of moves such as move_right:1.0,rotate_up:20"
    )
    found = read_moves(answer, _MOVES)
    return 0.0 if found is None else view_change_accuracy(found, truth)


_SCORES: Mapping[str, Callable[[Sample, str, Comparison], float]] = {
    "text": _score_text,
    "choice": _score_choice,
    "number": _score_number,
    "mra": _score_mra,
    "math": _score_math,
    "yes_no": _score_yes_no,
    "box": _score_box,
    "view_change": _score_view_change,
}
