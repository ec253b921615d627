"""Policy loss `sapo`: a soft gate in place of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilavt_components.policy_losses.clipping import weigh_by_sequence
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting
from vilavt_toolkit.training.reinforcement.policy_math import probability_ratio


@dataclass(frozen=True)
class SAPOConfig:
    """Settings of policy loss `sapo`."""

    sharpness_gain: float = setting(1.0, help="sharpness of the gate of tokens with an advantage above 0", minimum=0.01)
    sharpness_loss: float = setting(
        1.05, help="sharpness of the gate of other tokens; above the other, since they unsettle training more",
        minimum=0.01,
    )  # fmt: skip


@policy_losses.register("sapo", SAPOConfig)
class SAPO(PolicyLoss):
    """The loss of SAPO (Qwen, 2025, arXiv 2511.20347): -(4 / tau) sigmoid(tau (rho - 1)) A.

    rho = exp(logp - old). The gradient fades smoothly with the distance of rho from 1, on both sides, and at 1 it is
    that of REINFORCE. tau is `sharpness_gain` or `sharpness_loss`, by the sign of the advantage.
    """

    def __init__(self, config: SAPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> SAPOConfig:
        """Return the default settings."""
        return SAPOConfig()

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [N] of every produced token, and False for each, since nothing is clipped."""
        tau = torch.where(advantages > 0, self.config.sharpness_gain, self.config.sharpness_loss)
        # 1 - sigmoid(-x) and not sigmoid(x): for large x the latter is 1 in float32, and its gradient 0.
        gate = (1 - torch.sigmoid(tau * (1 - probability_ratio(logp, old)))) * (4 / tau)
        return -gate * advantages, torch.zeros_like(logp, dtype=torch.bool)

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return 1 / (sequences x length): a mean over tokens, then over the sequences that have tokens."""
        return weigh_by_sequence(lengths)
