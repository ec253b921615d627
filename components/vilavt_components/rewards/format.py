"""Reward `format`: 1 if every turn follows the dialogue's grammar."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.rewards.answer import read_final_answer
from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory, Turn
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class FormatConfig(RewardConfig):
    """Settings of reward `format`."""

    empty_thoughts: bool = setting(False, help="allow turns with an empty thought")
    blank_inquiries: bool = setting(False, help="allow zooms with an empty inquiry")


@rewards.register("format", FormatConfig)
class Format(Reward):
    """1 if every turn is one thought and either a tool call that was carried out or an answer; the last must answer.

    A tool call must say what is to be found. Without an inquiry nothing modulates the encoder, and a policy could
    switch the modulation off at full reward.
    """

    def __init__(self, config: FormatConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> FormatConfig:
        """Return the default settings."""
        return FormatConfig()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return 1 or 0; a dialogue without a turn scores 0."""
        if read_final_answer(trajectory) is None:
            return 0.0
        pairs = zip(trajectory.turns, trajectory.feedback, strict=True)
        return float(all(self._is_well_formed(turn, feedback) for turn, feedback in pairs))

    def _is_well_formed(self, turn: Turn, feedback: str) -> bool:
        if turn.problem or not (turn.thought.strip() or self.config.empty_thoughts):
            return False
        if turn.call is None:
            return bool(turn.answer and turn.answer.strip())
        # Feedback is what the dialogue answers to a call it cannot carry out, such as one with a region that does not
        # exist. Checking boxes a second time here could disagree with it.
        said = bool(turn.call.inquiry.strip()) or self.config.blank_inquiries
        return turn.answer is None and bool(turn.call.regions) and said and not feedback
