"""Reward `vilavt`: the paper's reward, outcome and format in one."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.rewards.answer import AnswerConfig, AnswerReward
from vilavt_components.rewards.format import Format, FormatConfig
from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class VilavtRewardConfig(RewardConfig):
    """Settings of reward `vilavt`, the paper's where they are not set."""

    format_share: float = setting(
        0.5, help="share of the format in the reward of a right answer, the rest is the outcome's", minimum=0, maximum=1
    )
    strict: bool = setting(True, help="count a threshold of `mra` only if the error is below it, not if it is equal")
    empty_thoughts: bool = setting(False, help="allow turns with an empty thought")


@rewards.register("vilavt", VilavtRewardConfig)
class VilavtReward(Reward):
    """Half the outcome plus half the format if the outcome is above 0, else 0, as in the paper's recipe.

    The outcome is the score of reward `answer`, the format that of reward `format`. They are stricter than the paper's
    implementation, which pays for some answers that are not right: those earn nothing here.
    """

    def __init__(self, config: VilavtRewardConfig) -> None:
        self.config = config
        self._outcome = AnswerReward(AnswerConfig(strict=config.strict))
        self._format = Format(FormatConfig(empty_thoughts=config.empty_thoughts))

    @classmethod
    def tiny(cls) -> VilavtRewardConfig:
        """Return the default settings."""
        return VilavtRewardConfig()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return the reward in [0, 1]; raises InputError if the sample's own answer cannot be read."""
        outcome = self._outcome.score(sample, trajectory)
        # Without this gate a well-formed wrong answer would earn half, and the model could live on form alone.
        if not outcome > 0:
            return 0.0
        share = self.config.format_share
        return (1 - share) * outcome + share * self._format.score(sample, trajectory)
