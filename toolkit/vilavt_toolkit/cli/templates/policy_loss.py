"""The policy loss 'my_part': the clipped loss of PPO, averaged over all tokens of a step.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    rl:
      policy_loss: {name: my_part, clip: 0.1}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    clip: float = setting(0.2, help="how far the ratio of probabilities may move from 1", minimum=0, maximum=1)


@policy_losses.register("my_part", MyPartConfig)
class MyPart(PolicyLoss):
    """Maximise the advantage under a clipped ratio of probabilities (PPO, arXiv 1707.06347)."""

    def __init__(self, config: MyPartConfig) -> None:
        self.clip = config.clip

    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of every produced token, and True where clipping stops its gradient; [N], bool [N]."""
        # The bound keeps exp finite, however far the weights have moved from those that sampled.
        ratio = (logp - old).clamp(-20, 20).exp()
        free = -advantages * ratio
        clipped = -advantages * ratio.clamp(1 - self.clip, 1 + self.clip)
        is_clipped = clipped > free
        return torch.where(is_clipped, clipped, free), is_clipped

    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return the weight of every sequence of a whole optimizer step: all its tokens count the same."""
        total = sum(lengths)
        return [1 / total if length else 0.0 for length in lengths]

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
