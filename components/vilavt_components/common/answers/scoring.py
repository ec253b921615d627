"""Whether an answer is right, by its kind: what reward `answer` and the tasks compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from vilavt_components.common.answers.math import same_value
from vilavt_components.common.answers.reading import (
    overlap,
    read_box,
    read_choice,
    read_moves,
    read_number,
    read_yes_no,
    same_number,
    same_text,
)
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import InputError

T = TypeVar("T")
Kind = Literal["text", "choice", "number", "mra", "math", "yes_no", "box", "view_change"]

REINFORCEMENT_KINDS: Mapping[str, Kind] = {
    "multiple choice": "choice",
    "math": "math",
    "numerical": "mra",
    "regression": "mra",
    "judgment": "yes_no",
}
"""The kinds of answer of the question types in the paper's data for reinforcement."""
BENCHMARK_KINDS: Mapping[str, Kind] = {**REINFORCEMENT_KINDS, "numerical": "number", "vci": "view_change"}
"""The same for its benchmarks, where a number is right or wrong."""


def kind_of(question_type: str, kinds: Mapping[str, Kind], where: str) -> Kind:
    """The kind of answer of a question type, however it is capitalised; raises InputError, naming `where` it stands."""
    kind = kinds.get(" ".join(question_type.casefold().split()))
    if kind is None:
        raise InputError(f"{where}: the question type is '{question_type}'; it must be one of {', '.join(kinds)}.")
    return kind


@dataclass(frozen=True)
class Comparison:
    """How exact an answer must be."""

    tolerance: float = 0.0
    """Relative error that a number may have."""
    strict: bool = False
    """Whether a relative error must be below a threshold of mean relative accuracy, not only reach it."""
    iou: float | None = 0.5
    """Overlap from which a box is right; None: the overlap is the score."""


def score_answer(sample: Sample, answer: str | None, kind: str = "auto", how: Comparison | None = None) -> float:
    """The score in [0, 1] of an answer, 0 for a missing or empty one; the whole answer must be what it says.

    `kind` "auto" is the sample's tag `answer_kind`, "text" without one. Raises InputError where the sample's own
    answer is empty or cannot be read.
    """
    if kind == "auto":
        kind = str(sample.tags.get("answer_kind", "text"))
    if kind not in _SCORES:
        known = ", ".join(_SCORES)
        raise InputError(f"sample {sample.id}: its tag answer_kind is '{kind}'; it must be one of {known}.")
    if not sample.answer.strip():
        raise InputError(f"sample {sample.id} has no answer, and without one nothing is right; take another split.")
    if answer is None or not answer.strip():
        return 0.0
    return float(_SCORES[kind](sample, answer, how or Comparison()))


def mean_relative_accuracy(found: Fraction, truth: Fraction, strict: bool = False) -> float:
    """The share of the thresholds .50, .55 .. .95 that 1 - |found - truth| / |truth| reaches (arXiv 2412.14171).

    Exact, so that an error of exactly .25 counts at .75; with `strict` it does not. A truth of 0 takes 0 only.
    """
    error = abs(found - truth)
    return _share_of_thresholds(error, abs(truth), strict) if truth else float(not error)


def view_change_accuracy(found: Mapping[str, Fraction], truth: Mapping[str, Fraction]) -> float:
    """The mean over five axes of the mean relative accuracy of what is moved along each (SPAR-Bench, arXiv 2503.22976).

    Along an axis without motion the error is counted as it stands, in the units of the answer.
    """
    scores = []
    for ahead, back in _AXES:
        moved, wanted = (each.get(ahead, Fraction()) - each.get(back, Fraction()) for each in (found, truth))
        scores.append(_share_of_thresholds(abs(moved - wanted), abs(wanted) or Fraction(1), strict=False))
    return sum(scores) / len(scores)


_AXES = (
    ("move_right", "move_left"),
    ("move_up", "move_down"),
    ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"),
    ("rotate_up", "rotate_down"),
)
_MOVES = frozenset(name for axis in _AXES for name in axis)


def _share_of_thresholds(error: Fraction, unit: Fraction, strict: bool) -> float:
    allowed = (step * unit for step in range(1, 11))
    return sum(20 * error < most or (not strict and 20 * error == most) for most in allowed) / 10


def _readable(truth: T | None, sample: Sample, what: str) -> T:
    if truth is None:
        raise InputError(f"sample {sample.id}: its answer {sample.answer!r} is no {what}; mend it, or its answer_kind.")
    return truth


def _text(sample: Sample, answer: str, how: Comparison) -> bool:
    return same_text(sample.answer, answer)


def _choice(sample: Sample, answer: str, how: Comparison) -> bool:
    options: Sequence[str] = tuple(sample.tags.get("options", ()))
    truth = _readable(read_choice(sample.answer, options), sample, "letter or option")
    return read_choice(answer, options) == truth


def _yes_no(sample: Sample, answer: str, how: Comparison) -> bool:
    return read_yes_no(answer) == _readable(read_yes_no(sample.answer), sample, "yes or no")


def _number(sample: Sample, answer: str, how: Comparison) -> bool:
    truth, found = _readable(read_number(sample.answer), sample, "number"), read_number(answer)
    return found is not None and same_number(truth, found, how.tolerance)


def _mra(sample: Sample, answer: str, how: Comparison) -> float:
    truth, percent = _readable(read_number(sample.answer), sample, "number")
    found = read_number(answer)
    if found is None:
        return 0.0
    # Asked for a percentage, "25" means 25%, and "0.25" is the same number.
    readings = [found[0], found[0] / 100] if percent and not found[1] else [found[0]]
    return max(mean_relative_accuracy(reading, truth, how.strict) for reading in readings)


def _math(sample: Sample, answer: str, how: Comparison) -> bool:
    return same_value(sample.answer, answer)


def _box(sample: Sample, answer: str, how: Comparison) -> float:
    truth, found = _readable(read_box(sample.answer), sample, "box"), read_box(answer)
    shared = 0.0 if found is None else overlap(truth, found)
    return shared if how.iou is None else float(shared >= how.iou)


def _view_change(sample: Sample, answer: str, how: Comparison) -> float:
    truth = _readable(read_moves(sample.answer, _MOVES), sample, "list of moves such as move_right:1.0,rotate_up:20")
    found = read_moves(answer, _MOVES)
    return 0.0 if found is None else view_change_accuracy(found, truth)


_SCORES: Mapping[str, Callable[[Sample, str, Comparison], float]] = {
    "text": _text,
    "choice": _choice,
    "number": _number,
    "mra": _mra,
    "math": _math,
    "yes_no": _yes_no,
    "box": _box,
    "view_change": _view_change,
}
