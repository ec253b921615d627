"""Policy loss `ppo_clip`: PPO's clipped surrogate, with clip-higher and dual clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vilavt_components.policy_losses.clipping import clipped_loss, weigh_by_constant, weigh_by_sequence, weigh_by_token
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class PPOClipConfig:
    """Settings of policy loss `ppo_clip`."""

    eps_low: float = setting(0.2, help="distance below 1 at which the ratio is clipped", minimum=0, maximum=1)
    eps_high: float = setting(0.2, help="distance above 1 at which the ratio is clipped (DAPO takes 0.28)", minimum=0)
    dual_clip: float | None = setting(
        3.0, help="largest ratio that counts if the advantage is negative (null for no limit)", minimum=1
    )
    normalise: Literal["sequence", "tokens", "constant"] = setting(
        "sequence",
        help="sequence for the mean over tokens, then over sequences (GRPO), tokens for the mean over all tokens of a "
        "step (DAPO), constant for the sum over tokens / max_length, then the mean over sequences (Dr. GRPO)",
    )
    max_length: int | None = setting(None, help="constant of `normalise: constant`, in tokens", minimum=1)

    def __post_init__(self) -> None:
        if (self.normalise == "constant") != (self.max_length is not None):
            raise ValueError("max_length and `normalise: constant` go together. Give both, or neither.")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.eps_high:
            raise ValueError(
                f"dual_clip {self.dual_clip} must exceed 1 + eps_high, {1 + self.eps_high}. Raise it or set null."
            )


@policy_losses.register("ppo_clip", PPOClipConfig)
class PPOClip(PolicyLoss):
    """PPO's clipped surrogate (Schulman et al., 2017, arXiv 1707.06347, equation 7): -min(rho A, clip(rho) A).

    rho = exp(logp - old). A token gains nothing by moving further than the clip, and a token of a bad rollout loses at
    most `dual_clip` * |A|. `normalise` chooses the average over tokens: that of GRPO, DAPO or Dr. GRPO.
    """

    def __init__(self, config: PPOClipConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> PPOClipConfig:
        """Return the default settings."""
        return PPOClipConfig()

    @classmethod
    def variants(cls) -> dict[str, PPOClipConfig]:
        """Return settings of the other two ways to average tokens, one of them without dual clip."""
        return {
            "tokens": PPOClipConfig(eps_high=0.28, dual_clip=None, normalise="tokens"),
            "constant": PPOClipConfig(normalise="constant", max_length=8),
        }

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [N] of every produced token, and bool [N], True if clipping stops its gradient."""
        config = self.config
        return clipped_loss(logp, old, advantages, config.eps_low, config.eps_high, config.dual_clip)

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return the weight of every sequence's tokens, from the lengths of all sequences of a step."""
        # `max_length` is set exactly when `normalise` is "constant"; the config checks that.
        if self.config.max_length is not None:
            return weigh_by_constant(lengths, self.config.max_length)
        return weigh_by_token(lengths) if self.config.normalise == "tokens" else weigh_by_sequence(lengths)
