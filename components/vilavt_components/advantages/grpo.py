"""Advantage `grpo`: a rollout's reward in standard deviations from the mean of its prompt group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vilavt_components.advantages.group_rewards import subtract_group_mean
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of advantage `grpo`."""

    eps: float = setting(1e-4, help="number added to the standard deviation", minimum=1e-8)


@advantages.register("grpo", GRPOConfig)
class GRPO(Advantage):
    """The group advantage of GRPO (Shao et al., 2024, arXiv 2402.03300, section 4.1.2): (r - mean) / (std + eps).

    `eps` keeps groups of equal rewards finite. Groups of nearly equal rewards are scaled up: see `dr_grpo`.
    """

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> GRPOConfig:
        """Return the default settings."""
        return GRPOConfig()

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return (r - mean) / (std + eps) within each group; [P, G] -> [P, G]."""
        # torch's std divides by G - 1, as in the common implementations of GRPO.
        return subtract_group_mean(rewards) / (rewards.std(1, keepdim=True) + self.config.eps)
