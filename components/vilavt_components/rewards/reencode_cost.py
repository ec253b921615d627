"""Reward `reencode_cost`: a price for every region or token that tool calls had encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import rewards
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class ReencodeCostConfig(RewardConfig):
    """Settings of reward `reencode_cost`."""

    unit: Literal["region", "token"] = setting("region", help="unit that is counted, regions or the tokens they take")
    price: float = setting(0.05, help="cost of each unit", minimum=0)
    free_units: int = setting(0, help="number of units that cost nothing", minimum=0, formerly=("free",))
    max_cost: float = setting(1.0, help="largest cost of a rollout", minimum=0, formerly=("most",))


@rewards.register("reencode_cost", ReencodeCostConfig)
class ReencodeCost(Reward):
    """A cost, 0 or below, for the regions that tool calls had encoded; overviews cost nothing."""

    def __init__(self, config: ReencodeCostConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> ReencodeCostConfig:
        """Return the default settings."""
        return ReencodeCostConfig()

    @classmethod
    def variants(cls) -> dict[str, ReencodeCostConfig]:
        """Return settings that count tokens."""
        return {"token": ReencodeCostConfig(unit="token", price=0.001, free_units=16)}

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return minus `price` for each unit after the first `free_units`, at least -`max_cost`."""
        config = self.config
        # An overview has no box: the dialogue opens with it, the model did not ask for it.
        regions = [region for region in trajectory.regions if region.box is not None]
        used = len(regions) if config.unit == "region" else sum(region.count for region in regions)
        # 0.0 - x, not -x: no cost must be 0.0, and -0.0 would show up as "-0.0" in logs.
        return 0.0 - min(config.max_cost, config.price * max(0, used - config.free_units))
