"""Advantage `dr_grpo`: how much a rollout is better than its prompt group."""

from __future__ import annotations

from torch import Tensor

from vilavt_components.advantages.group_rewards import centred
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import NoSettings


@advantages.register("dr_grpo")
class DrGRPO(Advantage):
    """Rewards about their group's mean, so that easy and hard prompts are not blown up (arXiv 2503.20783).

    The rest of that paper is policy loss `ppo_clip` with `normalise: constant`.
    """

    def __init__(self, config: NoSettings) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the (empty) settings."""
        return NoSettings()

    def advantages(self, rewards: Tensor) -> Tensor:
        """r - mean; [P, G] -> [P, G]."""
        return centred(rewards)
