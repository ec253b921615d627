"""Policy loss `dapo`: clip-higher, and every token of a step has the same weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vilavt_components.policy_losses.clipping import clipped_loss, weigh_by_token
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class DAPOConfig:
    """Settings of policy loss `dapo`."""

    eps_low: float = setting(0.2, help="distance below 1 at which the ratio is clipped", minimum=0, maximum=1)
    eps_high: float = setting(0.28, help="distance above 1 at which the ratio is clipped", minimum=0)


@policy_losses.register("dapo", DAPOConfig)
class DAPO(PolicyLoss):
    """The loss of DAPO (Yu et al., 2025, arXiv 2503.14476, equation 8): the mean over all produced tokens of a step.

    The clip is wider above (`eps_high`) than below, so rare tokens can become probable. Two more parts of that paper
    live elsewhere: its soft overlong penalty is reward `overlong_cost`, its dynamic sampling is done by the rollouts.
    """

    def __init__(self, config: DAPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> DAPOConfig:
        """Return the default settings."""
        return DAPOConfig()

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [N] of every produced token, and bool [N], True if clipping stops its gradient."""
        return clipped_loss(logp, old, advantages, self.config.eps_low, self.config.eps_high, dual=None)

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return 1 / N for every sequence that has tokens, with N the produced tokens of the step."""
        return weigh_by_token(lengths)
