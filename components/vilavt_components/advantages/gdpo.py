"""Advantage `gdpo`: every reward is compared by itself in its prompt group, and then they are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilavt_components.advantages.group_rewards import normalise_step, subtract_group_mean
from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class GDPOConfig:
    """Settings of advantage `gdpo`."""

    eps: float = setting(1e-4, help="number added to the standard deviations", minimum=1e-8)
    over_step: bool = setting(True, help="divide the sums by their standard deviation in the step, as the paper does")


@advantages.register("gdpo", GDPOConfig)
class GDPO(Advantage):
    """The decoupled advantage of GDPO (Liu et al., 2026, arXiv 2601.05242): sum_k w_k (r_k - mean_k) / (std_k + eps).

    Means and deviations are of each reward r_k within its prompt group, w_k is its weight in the recipe. Rollouts with
    the same sum of different rewards stay apart, and a reward of small range is not drowned by one of large range.
    """

    compares_whole_step = True

    def __init__(self, config: GDPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> GDPOConfig:
        """Return the default settings."""
        return GDPOConfig()

    @classmethod
    def variants(cls) -> dict[str, GDPOConfig]:
        """Return settings without the normalisation over the step."""
        return {"groups": GDPOConfig(over_step=False)}

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return the advantages of rollouts with a single reward; [P, G] -> [P, G]."""
        return self.compare_scores(rewards[..., None], [1.0])

    def compare_scores(self, scores: Tensor, weights: Sequence[float]) -> Tensor:
        """Return sum_k w_k (r_k - mean_k) / (std_k + eps), normalised over the step; [P, G, R] -> [P, G]."""
        compared = torch.zeros_like(scores[..., 0])
        for number, weight in enumerate(weights):
            centred = subtract_group_mean(scores[..., number])
            compared += weight * centred / (scores[..., number].std(1, keepdim=True) + self.config.eps)
        return (normalise_step(compared, self.config.eps) if self.config.over_step else compared).float()
