"""Reward `answer`: whether the answer is right, by the kind of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_components.common.answers.scoring import Comparison, score_answer
from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(RewardSettings):
    """Settings of reward `answer`."""

    kind: Literal["auto", "text", "choice", "number", "mra", "math", "yes_no", "box", "view_change"] = setting(
        "auto", help="how answers are compared; auto: as the sample's tag `answer_kind` says, text without one"
    )
    tolerance: float = setting(0.0, help="relative error that a number may have", minimum=0, maximum=1)
    strict: bool = setting(
        False, help="whether `mra` counts a threshold only where the error is below it, not where it is reached"
    )
    iou: float | None = setting(
        0.5,
        help="overlap (intersection over union) from which a box is right; null: the overlap is the reward",
        minimum=0.01,
        maximum=1,
    )


@rewards.register("answer", AnswerConfig)
class Answer(Reward):
    """1 for a right answer in the last turn, 0 for a wrong or missing one.

    Graded for `mra`, for `view_change`, and for boxes without `iou`. The whole answer must be what it says: nothing is
    searched for inside a longer text.
    """

    def __init__(self, config: AnswerConfig) -> None:
        self.config = config
        self._how = Comparison(tolerance=config.tolerance, strict=config.strict, iou=config.iou)

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
        return score_answer(sample, final_answer(trajectory), self.config.kind, self._how)


def final_answer(trajectory: Trajectory) -> str | None:
    """The answer of the last turn, if that is in the right form and answers; nothing else is ever scored."""
    if not trajectory.turns:
        return None
    turn = trajectory.turns[-1]
    if turn.problem or turn.call is not None or turn.answer is None or not turn.answer.strip():
        return None
    return turn.answer
