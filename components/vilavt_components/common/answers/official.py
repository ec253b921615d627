"""The scores of the paper's own evaluation, for numbers that are to be put beside published ones.

Each rule is the paper's evaluation script's, rounding and faults included. It reads no answers of kind `yes_no` or
`math`. For `yes_no` the rule of the paper's reward is taken, for `math` and `text` ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from vilavt_components.common.answers.scoring import MOVE_AXES, score_answer
from vilavt_toolkit.contracts import Sample

_ANSWER_START, _ANSWER_END = "<answer>", "</answer>"
_WORDS = {"yes": re.compile(r"\byes\b"), "no": re.compile(r"\bno\b")}
_EPSILON = 1e-8


def score_official(sample: Sample, text: str | None) -> float:
    """Return the score of a turn's text, or of an answer alone, as the paper's evaluation gives it.

    Of several answers in the text the first counts. A text without an answer is read as one. An answer that the
    paper's code cannot read scores 0. Raises InputError if the sample has no answer of its own.
    """
    kind = str(sample.tags.get("answer_kind", "text"))
    answer = extract_first_answer(text or "")
    rule = _RULES.get(kind)
    if rule is None or not sample.answer.strip():
        # The common check of the sample's own answer stands in one place.
        return score_answer(sample, answer)
    return rule(extract_first_answer(sample.answer), answer) if answer.strip() else 0.0


def extract_first_answer(text: str) -> str:
    """Return the text of the first closed <answer>, or the whole text if there is none."""
    # Two searches for fixed texts: a lazy expression would scan the rest of the text from every opened tag.
    _, opened, rest = text.partition(_ANSWER_START)
    answer, closed, _ = rest.partition(_ANSWER_END)
    return answer.strip() if opened and closed else text


def _score_first_letter(truth: str, answer: str) -> float:
    return float(truth.strip()[0].lower() == answer.strip()[0].lower())


def _score_rounded_number(truth: str, answer: str) -> float:
    # A number with a point or a comma never equals one without.
    if ("." in truth or "," in truth) != ("." in answer or "," in answer):
        return 0.0
    wanted, found = _read_float(truth), _read_float(answer)
    if wanted is None or found is None:
        return 0.0
    return float(round(wanted, 2) == round(found, 2))


def _score_relative_accuracy(truth: str, answer: str) -> float:
    wanted, found = _read_float(truth), _read_float(answer)
    return 0.0 if wanted is None or found is None else _relative_accuracy(found, wanted)


def _score_words(truth: str, answer: str) -> float:
    wanted, found = truth.lower(), answer.lower()
    return float(any(word.search(wanted) and word.search(found) for word in _WORDS.values()))


def _score_view_change(truth: str, answer: str) -> float:
    try:
        wanted, found = _read_moves(truth), _read_moves(answer)
    except ValueError:
        return 0.0
    scores = [
        _relative_accuracy(*(moves.get(ahead, 0.0) - moves.get(back, 0.0) for moves in (found, wanted)))
        for ahead, back in MOVE_AXES
    ]
    return sum(scores) / len(scores)


def _read_float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _read_moves(text: str) -> dict[str, float]:
    """Read "move_right:1.0,rotate_up:20"; raises ValueError. Unknown names are read too and count for nothing."""
    moves = {}
    for item in text.split(","):
        name, length = item.split(":")
        moves[name] = float(length)
    return moves


def _relative_accuracy(found: float, truth: float) -> float:
    """Return the mean relative accuracy in float32, which decides ties by its rounding."""
    value, wanted = (torch.tensor(number, dtype=torch.float32) for number in (found, truth))
    error = (value - wanted).abs() / (wanted.abs() + _EPSILON)
    return (error <= 1 - _thresholds()).float().mean().item()


@cache
def _thresholds() -> Tensor:
    return torch.arange(0.5, 0.95 + 0.05 / 2, 0.05, dtype=torch.float32)


_RULES: Mapping[str, Callable[[str, str], float]] = {
    "choice": _score_first_letter,
    "number": _score_rounded_number,
    "mra": _score_relative_accuracy,
    "yes_no": _score_words,
    "view_change": _score_view_change,
}
