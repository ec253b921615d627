"""Reward `overlong_cost`: DAPO's soft overlong penalty."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class OverlongCostConfig(RewardConfig):
    """Settings of reward `overlong_cost`."""

    length: int = setting(help="tokens written in a dialogue at which the cost is 1", minimum=1)
    margin: int = setting(help="number of tokens before `length` over which the cost rises from 0", minimum=1)

    def __post_init__(self) -> None:
        if self.margin > self.length:
            raise ValueError(f"margin {self.margin} exceeds length {self.length}. Lower it.")


@rewards.register("overlong_cost", OverlongCostConfig)
class OverlongCost(Reward):
    """A cost from 0 to -1 for dialogues in which the model writes too much (DAPO, arXiv 2503.14476, equation 13).

    A cost that sets in at once would punish a sound but slightly longer thought as hard as endless text.
    """

    def __init__(self, config: OverlongCostConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> OverlongCostConfig:
        """Return settings that a few dozen tokens exceed."""
        return OverlongCostConfig(length=32, margin=16)

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return 0 up to `length - margin` produced tokens, then fall linearly to -1 at `length` and stay there."""
        beyond = sum(trajectory.produced) - (self.config.length - self.config.margin)
        # 0.0 - x, not -x: no cost must be 0.0, and -0.0 would show up as "-0.0" in logs.
        return 0.0 - min(1.0, max(0, beyond) / self.config.margin)
