"""Advantage `rloo`: how much a rollout is better than the others of its prompt group."""

from __future__ import annotations

from torch import Tensor

from vilavt_components.advantages.group_rewards import centred
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import NoSettings


@advantages.register("rloo")
class RLOO(Advantage):
    """Rewards minus the mean of the group's other rollouts, an unbiased baseline (arXiv 2402.14740)."""

    def __init__(self, config: NoSettings) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the (empty) settings."""
        return NoSettings()

    def advantages(self, rewards: Tensor) -> Tensor:
        """r - mean of the others = G / (G - 1) (r - mean); [P, G] -> [P, G]."""
        centre = centred(rewards)
        size = rewards.shape[1]
        return centre * (size / (size - 1))
