"""Reward `vilavt`: the paper's, outcome and format in one."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.rewards.answer import Answer, AnswerConfig
from vilavt_components.rewards.format import Format, FormatConfig
from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class VilavtConfig(RewardSettings):
    """Settings of reward `vilavt`, the paper's where they are not set."""

    format_share: float = setting(
        0.5, help="share of the format in the reward of what is right; the outcome has the rest", minimum=0, maximum=1
    )
    strict: bool = setting(
        True, help="whether `mra` counts a threshold only where the error is below it, not where it is reached"
    )
    empty_thoughts: bool = setting(False, help="whether a turn may leave its thought empty")


@rewards.register("vilavt", VilavtConfig)
class Vilavt(Reward):
    """Half the outcome and half the format where the outcome is above 0, else 0, as in the paper's recipe.

    The outcome is that of reward `answer`, the format that of reward `format`: what its implementation pays for
    without being right earns nothing here.
    """

    def __init__(self, config: VilavtConfig) -> None:
        self.config = config
        self._outcome = Answer(AnswerConfig(strict=config.strict))
        self._format = Format(FormatConfig(empty_thoughts=config.empty_thoughts))

    @classmethod
    def tiny(cls) -> VilavtConfig:
        """Return the default settings."""
        return VilavtConfig()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """The reward in [0, 1]; raises InputError where the sample's own answer cannot be read."""
        outcome = self._outcome.score(sample, trajectory)
        if not outcome > 0:
            return 0.0
        share = self.config.format_share
        return (1 - share) * outcome + share * self._format.score(sample, trajectory)
