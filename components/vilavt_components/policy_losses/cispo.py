"""Policy loss `cispo`: the ratio is a bounded weight, and every token keeps its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilavt_components.policy_losses.clipping import weigh_by_token
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting
from vilavt_toolkit.training.reinforcement.policy_math import probability_ratio


@dataclass(frozen=True)
class CISPOConfig:
    """Settings of policy loss `cispo`."""

    max_ratio: float = setting(5.0, help="largest ratio that a token is weighed by", minimum=1)


@policy_losses.register("cispo", CISPOConfig)
class CISPO(PolicyLoss):
    """The loss of CISPO (MiniMax-M1, 2025, arXiv 2506.13585, equation 4): -stopgrad(min(rho, max_ratio)) A logp.

    rho = exp(logp - old). Clipping takes the gradient of rare tokens such as "however" away after the first step.
    Here they keep it, and only its size is bounded. There is no lower bound, as in the paper's runs.
    """

    def __init__(self, config: CISPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> CISPOConfig:
        """Return the default settings."""
        return CISPOConfig()

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [N] of every produced token, and False for each, since none loses its gradient."""
        weights = probability_ratio(logp, old).detach().clamp(max=self.config.max_ratio)
        return -weights * advantages * logp, torch.zeros_like(logp, dtype=torch.bool)

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return 1 / N for every sequence that has tokens, with N the produced tokens of the step."""
        return weigh_by_token(lengths)
