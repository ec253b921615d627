"""Advantage `dr_grpo`: a rollout's reward minus the mean of its prompt group."""

from __future__ import annotations

from torch import Tensor

from vilavt_components.advantages.group_rewards import subtract_group_mean
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import NoSettings


@advantages.register("dr_grpo")
class DrGRPO(Advantage):
    """The group advantage of Dr. GRPO (Liu et al., 2025, arXiv 2503.20783): r - mean.

    Without GRPO's division by the standard deviation, very easy and very hard prompts get no larger weight. The other
    change of that paper, no mean over a sequence's length, is policy loss `ppo_clip` with `normalise: constant`.
    """

    def __init__(self, config: NoSettings) -> None:
        """Take the empty settings, as every component does."""

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return r - mean within each group; [P, G] -> [P, G]."""
        return subtract_group_mean(rewards)
