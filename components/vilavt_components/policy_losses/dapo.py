"""Policy loss `dapo`: clip-higher, and every token of a step counts alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vilavt_components.policy_losses.clipping import clipped_loss, token_weights
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class DAPOConfig:
    """Settings of policy loss `dapo`."""

    eps_low: float = setting(0.2, help="how far the ratio counts below 1", minimum=0, maximum=1)
    eps_high: float = setting(0.28, help="how far the ratio counts above 1", minimum=0)


@policy_losses.register("dapo", DAPOConfig)
class DAPO(PolicyLoss):
    """The clipped loss, its mean over all produced tokens of the whole step (arXiv 2503.14476).

    That paper's soft overlong penalty is the reward `overlong_cost`; sampling again, the engine's.
    """

    def __init__(self, config: DAPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> DAPOConfig:
        """Return the default settings."""
        return DAPOConfig()

    def tokens(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [N] of every produced token, and whether clipping stops its gradient, bool [N]."""
        return clipped_loss(logp, old, advantages, self.config.eps_low, self.config.eps_high, dual=None)

    def weights(self, lengths: Sequence[int]) -> list[float]:
        """1 / N for every sequence that has tokens, N the produced tokens of the step."""
        return token_weights(lengths)
