"""Reward `gated`: one reward, only where another is earned."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import Part, rewards
from vilavt_toolkit.settings import part


@dataclass(frozen=True, kw_only=True)
class GatedConfig(RewardSettings):
    """Settings of reward `gated`."""

    reward: Part = part("reward", "what is given", "format")
    where: Part = part("reward", "what must be above 0 for it", "answer")


@rewards.register("gated", GatedConfig)
class Gated(Reward):
    """One reward where another is above 0, else 0: format only for what is right, as in the paper's recipe."""

    def __init__(self, config: GatedConfig) -> None:
        self._reward, self._where = _built(config.reward), _built(config.where)

    @classmethod
    def tiny(cls) -> GatedConfig:
        """Return settings that give the format reward where the answer is right."""
        return GatedConfig(reward=_tiny("format"), where=_tiny("answer"))

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """The one reward, its own weight not applied, or 0."""
        return self._reward.score(sample, trajectory) if self._where.score(sample, trajectory) > 0 else 0.0


def _built(chosen: Part) -> Reward:
    made: Reward = chosen.entry.cls(chosen.config)
    return made


def _tiny(name: str) -> Part:
    return Part("reward", name, rewards.get(name).cls.tiny())
