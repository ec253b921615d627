"""Reward `overlong_cost`: DAPO's soft overlong penalty."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class OverlongCostConfig(RewardSettings):
    """Settings of reward `overlong_cost`."""

    length: int = setting(help="tokens of the model's own in a dialogue from which the cost is whole", minimum=1)
    margin: int = setting(help="tokens before that over which the cost rises from 0", minimum=1)

    def __post_init__(self) -> None:
        if self.margin > self.length:
            raise ValueError(f"margin {self.margin} exceeds length {self.length}; lower it.")


@rewards.register("overlong_cost", OverlongCostConfig)
class OverlongCost(Reward):
    """A cost from 0 to -1 for dialogues in which the model writes very much (arXiv 2503.14476)."""

    def __init__(self, config: OverlongCostConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> OverlongCostConfig:
        """Return settings that a few dozen tokens exceed."""
        return OverlongCostConfig(length=32, margin=16)

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """0 up to `length - margin` produced tokens, then falling evenly, -1 from `length` on."""
        beyond = sum(trajectory.produced) - (self.config.length - self.config.margin)
        return 0.0 - min(1.0, max(0, beyond) / self.config.margin)
