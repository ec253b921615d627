"""Policy loss `ppo_clip`: PPO's clipped surrogate, with clip-higher and dual clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vilavt_components.policy_losses.clipping import clipped_loss, constant_weights, sequence_weights, token_weights
from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class PPOClipConfig:
    """Settings of policy loss `ppo_clip`."""

    eps_low: float = setting(0.2, help="how far the ratio counts below 1", minimum=0, maximum=1)
    eps_high: float = setting(0.2, help="how far the ratio counts above 1; .28 leaves rare tokens room", minimum=0)
    dual_clip: float | None = setting(
        3.0, help="largest ratio that counts where the advantage is negative; null: any", minimum=1
    )
    normalise: Literal["sequence", "tokens", "constant"] = setting(
        "sequence",
        help="mean over tokens, then sequences (GRPO); mean over all tokens of a step (DAPO); "
        "sum over tokens / max_length, then mean over sequences (Dr.GRPO)",
    )
    max_length: int | None = setting(None, help="the constant of `normalise: constant`, in tokens", minimum=1)

    def __post_init__(self) -> None:
        if (self.normalise == "constant") != (self.max_length is not None):
            raise ValueError("max_length and `normalise: constant` go together; give both, or neither.")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.eps_high:
            raise ValueError(
                f"dual_clip {self.dual_clip} must exceed 1 + eps_high, {1 + self.eps_high}; raise it, or set null."
            )


@policy_losses.register("ppo_clip", PPOClipConfig)
class PPOClip(PolicyLoss):
    """-min(rho A, clip(rho) A): no gain from going further than the clip, at most `dual_clip` times |A| of loss."""

    def __init__(self, config: PPOClipConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> PPOClipConfig:
        """Return the default settings."""
        return PPOClipConfig()

    @classmethod
    def variants(cls) -> dict[str, PPOClipConfig]:
        """Return settings of the other two ways to weigh tokens, one without dual clip."""
        return {
            "tokens": PPOClipConfig(eps_high=0.28, dual_clip=None, normalise="tokens"),
            "constant": PPOClipConfig(normalise="constant", max_length=8),
        }

    def tokens(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [N] of every produced token, and whether clipping stops its gradient, bool [N]."""
        config = self.config
        return clipped_loss(logp, old, advantages, config.eps_low, config.eps_high, config.dual_clip)

    def weights(self, lengths: Sequence[int]) -> list[float]:
        """The weight of every sequence's tokens, from the lengths of all sequences of a step."""
        if self.config.max_length is not None:
            return constant_weights(lengths, self.config.max_length)
        return token_weights(lengths) if self.config.normalise == "tokens" else sequence_weights(lengths)
