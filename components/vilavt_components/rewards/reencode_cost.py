"""Reward `reencode_cost`: looking again has its price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class ReencodeCostConfig(RewardSettings):
    """Settings of reward `reencode_cost`."""

    unit: Literal["region", "token"] = setting("region", help="what is counted: regions, or tokens they take")
    price: float = setting(0.05, help="cost of each", minimum=0)
    free: int = setting(0, help="how many cost nothing", minimum=0)
    most: float = setting(1.0, help="largest cost of a rollout", minimum=0)


@rewards.register("reencode_cost", ReencodeCostConfig)
class ReencodeCost(Reward):
    """A cost, 0 or below, for the regions that tool calls had encoded; the first views are free."""

    def __init__(self, config: ReencodeCostConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> ReencodeCostConfig:
        """Return the default settings."""
        return ReencodeCostConfig()

    @classmethod
    def variants(cls) -> dict[str, ReencodeCostConfig]:
        """Return settings that count tokens."""
        return {"token": ReencodeCostConfig(unit="token", price=0.001, free=16)}

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Minus the price of what is beyond the free ones, at least -`most`."""
        config = self.config
        regions = [region for region in trajectory.regions if region.box is not None]
        used = len(regions) if config.unit == "region" else sum(region.count for region in regions)
        return 0.0 - min(config.most, config.price * max(0, used - config.free))
