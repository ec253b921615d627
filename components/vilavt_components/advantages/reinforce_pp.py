"""Advantage `reinforce_pp`: a rollout's reward in standard deviations from the mean of the whole step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vilavt_components.advantages.group_rewards import normalise_step, subtract_group_mean
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class ReinforcePPConfig:
    """Settings of advantage `reinforce_pp`."""

    baseline: Literal["none", "group"] = setting(
        "none",
        help="none compares rewards with the mean of the step; group first subtracts the mean of the prompt group",
    )
    eps: float = setting(1e-4, help="number added to the standard deviation", minimum=1e-8)


@advantages.register("reinforce_pp", ReinforcePPConfig)
class ReinforcePP(Advantage):
    """The batch-normalised advantage of REINFORCE++ (Hu et al., 2025, arXiv 2501.03262): (r - mean) / (std + eps).

    Mean and deviation are of all rollouts of a step, so that a prompt that is always answered right still pushes its
    tokens up, and one that is always answered wrong pushes them down. `baseline: group` is that paper's
    REINFORCE++-baseline, for several rollouts of a prompt. Its KL penalty in the reward is `rl.kl_in: reward`.
    """

    compares_whole_step = True

    def __init__(self, config: ReinforcePPConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> ReinforcePPConfig:
        """Return the default settings."""
        return ReinforcePPConfig()

    @classmethod
    def variants(cls) -> dict[str, ReinforcePPConfig]:
        """Return settings with the other baseline."""
        return {"group": ReinforcePPConfig(baseline="group")}

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return (r - mean) / (std + eps) over all groups of the step; [P, G] -> [P, G]."""
        returns = subtract_group_mean(rewards) if self.config.baseline == "group" else rewards
        return normalise_step(returns, self.config.eps)
