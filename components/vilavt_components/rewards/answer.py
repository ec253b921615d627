"""Reward `answer`: 1 for a right answer, compared by its kind (text, number, box, ...)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_components.common.answers.scoring import Comparison, score_answer
from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(RewardConfig):
    """Settings of reward `answer`."""

    kind: Literal["auto", "text", "choice", "number", "mra", "math", "yes_no", "box", "view_change"] = setting(
        "auto", help="kind of comparison (auto for the sample's tag `answer_kind`, text without that tag)"
    )
    tolerance: float = setting(0.0, help="largest relative error of a right number", minimum=0, maximum=1)
    strict: bool = setting(False, help="count a threshold of `mra` only if the error is below it, not if it is equal")
    iou: float | None = setting(
        0.5,
        help="least intersection over union of a right box (null to make the overlap itself the reward)",
        minimum=0.01,
        maximum=1,
    )


@rewards.register("answer", AnswerConfig)
class AnswerReward(Reward):
    """1 for a right answer in the last turn, 0 for a wrong or missing one.

    Answers of kind `mra` and `view_change`, and boxes if `iou` is null, get a score between 0 and 1. The whole text
    must be the answer. Searching a longer text for it would pay a model for writing down every possible answer.
    """

    def __init__(self, config: AnswerConfig) -> None:
        self.config = config
        # Built once: `score` is called for every rollout of every step.
        self._how = Comparison(tolerance=config.tolerance, strict=config.strict, iou=config.iou)

    @classmethod
    def tiny(cls) -> AnswerConfig:
        """Return the default settings."""
        return AnswerConfig()

    @classmethod
    def variants(cls) -> dict[str, AnswerConfig]:
        """Return settings that compare texts, whatever the sample's tag says."""
        return {"text": AnswerConfig(kind="text")}

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return the answer's score in [0, 1]; raises InputError if the sample's own answer cannot be read."""
        return score_answer(sample, read_final_answer(trajectory), self.config.kind, self._how)


def read_final_answer(trajectory: Trajectory) -> str | None:
    """Return the answer of the last turn; None if that turn is malformed, calls the tool or has no answer."""
    # Only the last turn: an answer in an earlier turn was withdrawn, or the model would be paid for guessing twice.
    if not trajectory.turns:
        return None
    turn = trajectory.turns[-1]
    if turn.problem or turn.call is not None or turn.answer is None or not turn.answer.strip():
        return None
    return turn.answer
