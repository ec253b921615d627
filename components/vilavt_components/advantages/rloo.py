"""Advantage `rloo`: a rollout's reward minus the mean of the other rollouts of its prompt group."""

from __future__ import annotations

from torch import Tensor

from vilavt_components.advantages.group_rewards import subtract_group_mean
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import NoSettings


@advantages.register("rloo")
class RLOO(Advantage):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al., 2024, arXiv 2402.14740): r - mean of the others.

    The baseline of a rollout does not contain its own reward, so it leaves the policy gradient unbiased.
    """

    def __init__(self, config: NoSettings) -> None:
        """Take the empty settings, as every component does."""

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return r - mean of the group's others; [P, G] -> [P, G]."""
        # (G mean - r) / (G - 1) is the mean of the others, so r minus it is G / (G - 1) (r - mean).
        centre = subtract_group_mean(rewards)
        size = rewards.shape[1]
        return centre * (size / (size - 1))
