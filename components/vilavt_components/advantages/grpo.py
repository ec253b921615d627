"""Advantage `grpo`: how many standard deviations a rollout is better than its prompt group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vilavt_components.advantages.group_rewards import centred
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of advantage `grpo`."""

    eps: float = setting(1e-4, help="added to the standard deviation", minimum=1e-8)


@advantages.register("grpo", GRPOConfig)
class GRPO(Advantage):
    """Rewards about their group's mean, in the group's standard deviations (arXiv 2402.03300)."""

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> GRPOConfig:
        """Return the default settings."""
        return GRPOConfig()

    def advantages(self, rewards: Tensor) -> Tensor:
        """(r - mean) / (std + eps), the standard deviation unbiased; [P, G] -> [P, G]."""
        return centred(rewards) / (rewards.std(1, keepdim=True) + self.config.eps)
