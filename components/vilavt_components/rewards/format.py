"""Reward `format`: the whole grammar, in every turn."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.rewards.answer import final_answer
from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory, Turn
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class FormatConfig(RewardSettings):
    """Settings of reward `format`."""

    empty_thoughts: bool = setting(False, help="whether a turn may leave its thought empty")


@rewards.register("format", FormatConfig)
class Format(Reward):
    """1 where every turn is one thought and one tool call that was carried out or one answer, the last an answer."""

    def __init__(self, config: FormatConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> FormatConfig:
        """Return the default settings."""
        return FormatConfig()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """1 or 0; a dialogue without a turn scores 0."""
        if final_answer(trajectory) is None:
            return 0.0
        pairs = zip(trajectory.turns, trajectory.feedback, strict=True)
        return float(all(self._is_right(turn, feedback) for turn, feedback in pairs))

    def _is_right(self, turn: Turn, feedback: str) -> bool:
        if turn.problem or not (turn.thought.strip() or self.config.empty_thoughts):
            return False
        if turn.call is None:
            return bool(turn.answer and turn.answer.strip())
        # A call is judged where it is carried out: boxes that are none, regions that do not exist are told there.
        return turn.answer is None and bool(turn.call.regions) and not feedback
