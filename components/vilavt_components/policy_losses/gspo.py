"""Policy loss `gspo`: one ratio and one clip for a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vilavt_components.policy_losses.clipping import clip_ratio, weigh_by_sequence
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting
from vilavt_toolkit.training.reinforcement.policy_math import probability_ratio, sequence_means


@dataclass(frozen=True)
class GSPOConfig:
    """Settings of policy loss `gspo`."""

    eps_low: float = setting(3e-4, help="distance below 1 at which the ratio is clipped", minimum=0, maximum=1)
    eps_high: float = setting(4e-4, help="distance above 1 at which the ratio is clipped", minimum=0)


@policy_losses.register("gspo", GSPOConfig)
class GSPO(PolicyLoss):
    """The loss of GSPO (Zheng et al., 2025, arXiv 2507.18071, equation 5): -min(s A, clip(s) A) per sequence.

    s = exp(mean over a sequence's tokens of logp - old), its length-normalised likelihood ratio. A sequence is clipped
    as a whole. Means of logarithms stay near 0, so that the clip is a thousand times narrower than that of `ppo_clip`.
    """

    def __init__(self, config: GSPOConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> GSPOConfig:
        """Return the default settings."""
        return GSPOConfig()

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one sequence for each of its tokens, and True if it is clipped; [N], bool [N]."""
        return self.sequence_losses(logp, old, advantages, [len(logp)])

    def sequence_losses(
        self, logp: Tensor, old: Tensor, advantages: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return its sequence's loss for every token, and True if that sequence is clipped; [N], bool [N]."""
        # A sequence's tokens share its gradient: each has the loss of all, and the mean over them is the sequence's.
        means = sequence_means(logp - old, lengths)
        ratio = probability_ratio(means, means.new_zeros(()))
        return clip_ratio(ratio, advantages, self.config.eps_low, self.config.eps_high, dual=None)

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return 1 / (sequences x length): a mean over tokens, then over the sequences that have tokens."""
        return weigh_by_sequence(lengths)
