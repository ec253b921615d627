"""Reward `answer`: whether the answer is right, by the kind of the question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from vilavt_components.rewards._reading import (
    overlap,
    read_box,
    read_choice,
    read_number,
    read_yes_no,
    same_text,
)
from vilavt_toolkit.contracts import Reward, RewardSettings, Sample
from vilavt_toolkit.dialogue.trajectory import Trajectory
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import rewards, setting

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(RewardSettings):
    """Settings of reward `answer`."""

    kind: Literal["auto", "text", "choice", "number", "mra", "yes_no", "box"] = setting(
        "auto", help="how answers are compared; auto: as the sample's tag `answer_kind` says, text without one"
    )
    tolerance: float = setting(0.0, help="relative error that a number may have", minimum=0, maximum=1)
    iou: float | None = setting(
        0.5,
        help="overlap (intersection over union) from which a box is right; null: the overlap is the reward",
        minimum=0.01,
        maximum=1,
    )


@rewards.register("answer", AnswerConfig)
class Answer(Reward):
    """1 for a right answer in the last turn, 0 for a wrong or missing one; graded for `mra` and boxes without `iou`.

    The whole answer must be what it says: nothing is searched for inside a longer text.
    """

    def __init__(self, config: AnswerConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> AnswerConfig:
        """Return the default settings."""
        return AnswerConfig()

    @classmethod
    def variants(cls) -> dict[str, AnswerConfig]:
        """Return settings that ask for text, whatever the sample's tag says."""
        return {"text": AnswerConfig(kind="text")}

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """The answer's score in [0, 1]; raises InputError where the sample's own answer cannot be read."""
        answer = final_answer(trajectory)
        kind = self.config.kind if self.config.kind != "auto" else str(sample.tags.get("answer_kind", "text"))
        if kind not in _SCORES:
            raise InputError(
                f"sample {sample.id}: its tag answer_kind is '{kind}'; it must be one of {', '.join(_SCORES)}."
            )
        if not sample.answer.strip():
            raise InputError(f"sample {sample.id} has no answer, and without one nothing is right; take another split.")
        return 0.0 if answer is None else float(_SCORES[kind](sample, answer, self.config))


def final_answer(trajectory: Trajectory) -> str | None:
    """The answer of the last turn, if that is in the right form and answers; nothing else is ever scored."""
    if not trajectory.turns:
        return None
    turn = trajectory.turns[-1]
    if turn.problem or turn.call is not None or turn.answer is None or not turn.answer.strip():
        return None
    return turn.answer


def _readable(truth: T | None, sample: Sample, what: str) -> T:
    if truth is None:
        raise InputError(f"sample {sample.id}: its answer {sample.answer!r} is no {what}; mend it, or its answer_kind.")
    return truth


def _text(sample: Sample, answer: str, config: AnswerConfig) -> bool:
    return same_text(sample.answer, answer)


def _choice(sample: Sample, answer: str, config: AnswerConfig) -> bool:
    options = tuple(sample.tags.get("options", ()))
    truth = _readable(read_choice(sample.answer, options), sample, "letter or option")
    return read_choice(answer, options) == truth


def _yes_no(sample: Sample, answer: str, config: AnswerConfig) -> bool:
    return read_yes_no(answer) == _readable(read_yes_no(sample.answer), sample, "yes or no")


def _number(sample: Sample, answer: str, config: AnswerConfig) -> bool:
    truth, percent = _readable(read_number(sample.answer), sample, "number")
    found = read_number(answer)
    if found is None:
        return False
    # Asked for a percentage, "25" means 25%, and "0.25" is the same number.
    readings = [found[0], found[0] / 100] if percent and not found[1] else [found[0]]
    allowed = Fraction(str(config.tolerance)) * abs(truth)
    return any(abs(reading - truth) <= allowed for reading in readings)


def mean_relative_accuracy(found: Fraction, truth: Fraction) -> float:
    """The share of the thresholds .50, .55 .. .95 that 1 - |found - truth| / |truth| reaches (arXiv 2412.14171).

    Exact, so that an error of exactly .25 counts at .75. A truth of 0 takes 0 only.
    """
    error = abs(found - truth)
    if not truth:
        return float(not error)
    return sum(20 * error <= step * abs(truth) for step in range(1, 11)) / 10


def _mra(sample: Sample, answer: str, config: AnswerConfig) -> float:
    truth, _ = _readable(read_number(sample.answer), sample, "number")
    found = read_number(answer)
    return 0.0 if found is None else mean_relative_accuracy(found[0], truth)


def _box(sample: Sample, answer: str, config: AnswerConfig) -> float:
    truth, found = _readable(read_box(sample.answer), sample, "box"), read_box(answer)
    shared = 0.0 if found is None else overlap(truth, found)
    return shared if config.iou is None else float(shared >= config.iou)


_SCORES: Mapping[str, Callable[[Sample, str, AnswerConfig], float]] = {
    "text": _text,
    "choice": _choice,
    "number": _number,
    "mra": _mra,
    "yes_no": _yes_no,
    "box": _box,
}
