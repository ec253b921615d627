"""Reward `gated`: one reward, given only if another is above 0."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import Part, rewards
from vilavt_toolkit.settings import part


@dataclass(frozen=True, kw_only=True)
class GatedConfig(RewardConfig):
    """Settings of reward `gated`."""

    reward: Part = part("reward", "reward that is given", "format")
    condition: Part = part("reward", "reward that must be above 0 for it", "answer", formerly=("where",))


@rewards.register("gated", GatedConfig)
class Gated(Reward):
    """One reward if another is above 0, else 0: the paper's recipe gives the format reward to right answers only."""

    def __init__(self, config: GatedConfig) -> None:
        self._reward: Reward
        self._condition: Reward
        self._reward, self._condition = config.reward.build(), config.condition.build()

    @classmethod
    def tiny(cls) -> GatedConfig:
        """Return settings that give the format reward if the answer is right."""
        return GatedConfig(reward=_tiny_part("format"), condition=_tiny_part("answer"))

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return the score of `reward`, or 0 if `condition` scores 0 or below."""
        # The weights of both inner rewards do not apply: the engine weighs this reward as a whole.
        return self._reward.score(sample, trajectory) if self._condition.score(sample, trajectory) > 0 else 0.0


def _tiny_part(name: str) -> Part:
    return Part("reward", name, rewards.get(name).cls.tiny())
