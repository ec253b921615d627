"""What the clipped losses share: PPO's clip, the dual clip, and how a step's tokens are weighed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vilavt_toolkit.training.reinforcement.policy_math import ratio


def clipped_loss(
    logp: Tensor, old: Tensor, advantages: Tensor, low: float, high: float, dual: float | None
) -> tuple[Tensor, Tensor]:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), for A < 0 at most -dual A; [N] each.

    Returns the loss and whether a clip stops its gradient (arXiv 1707.06347, 1912.09729).
    """
    rho = ratio(logp, old)
    free = -advantages * rho
    held = -advantages * rho.clamp(1 - low, 1 + high)
    clipped = held > free
    # Not torch.maximum: at a tie, as everywhere on the first inner step, it halves the gradient between both.
    loss = torch.where(clipped, held, free)
    if dual is None:
        return loss, clipped
    most = -dual * advantages
    beyond = (advantages < 0) & (loss > most)
    return torch.where(beyond, most, loss), clipped | beyond


def sequence_weights(lengths: Sequence[int]) -> list[float]:
    """The mean over each sequence's tokens, then over the sequences that have some."""
    sequences = sum(length > 0 for length in lengths)
    return [1 / (sequences * length) if length else 0.0 for length in lengths]


def token_weights(lengths: Sequence[int]) -> list[float]:
    """The mean over all tokens of the step."""
    total = sum(lengths)
    return [1 / total if length else 0.0 for length in lengths]


def constant_weights(lengths: Sequence[int], max_length: int) -> list[float]:
    """The sum over all tokens, divided by the number of sequences that have some times a constant."""
    sequences = sum(length > 0 for length in lengths)
    return [1 / (sequences * max_length) if length else 0.0 for length in lengths]
