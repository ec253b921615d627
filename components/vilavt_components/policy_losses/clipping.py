"""The parts that the clipped losses share: PPO's clip, the dual clip, and the weights of a step's sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vilavt_toolkit.training.reinforcement.policy_math import probability_ratio


def clipped_loss(
    logp: Tensor, old: Tensor, advantages: Tensor, low: float, high: float, dual: float | None
) -> tuple[Tensor, Tensor]:
    """Return -min(rho A, clip(rho, 1 - low, 1 + high) A) per token, and whether a clip stops its gradient; [N] each.

    rho is the ratio of probabilities exp(logp - old) and A the advantage (PPO, arXiv 1707.06347, equation 7). If A < 0
    the loss is at most -dual A (dual clip, arXiv 1912.09729): a token that became far more probable under
    a bad rollout would otherwise have an unbounded loss.
    """
    return clip_ratio(probability_ratio(logp, old), advantages, low, high, dual)


def clip_ratio(rho: Tensor, advantages: Tensor, low: float, high: float, dual: float | None) -> tuple[Tensor, Tensor]:
    """Return `clipped_loss` of ratios [N] of probabilities."""
    unclipped_loss = -advantages * rho
    clipped_ratio_loss = -advantages * rho.clamp(1 - low, 1 + high)
    clipped = clipped_ratio_loss > unclipped_loss
    # Not torch.maximum: at a tie it splits the gradient between both, and on the first inner step every token ties.
    loss = torch.where(clipped, clipped_ratio_loss, unclipped_loss)
    if dual is None:
        return loss, clipped
    max_loss = -dual * advantages
    # Only for A < 0: elsewhere -dual A is negative, and a lower bound on the gain, not a bound on the loss.
    dual_clipped = (advantages < 0) & (loss > max_loss)
    return torch.where(dual_clipped, max_loss, loss), clipped | dual_clipped


def weigh_by_sequence(lengths: Sequence[int]) -> list[float]:
    """Return the weights of a mean over each sequence's tokens, then over the sequences that have tokens."""
    # An empty sequence has no token to learn from; counting it would only shrink the weights of the others.
    sequences = sum(length > 0 for length in lengths)
    return [1 / (sequences * length) if length else 0.0 for length in lengths]


def weigh_by_token(lengths: Sequence[int]) -> list[float]:
    """Return the weights of a mean over all tokens of the step."""
    # Longer sequences weigh more here, in proportion to their tokens: that is DAPO's point.
    total = sum(lengths)
    return [1 / total if length else 0.0 for length in lengths]


def weigh_by_constant(lengths: Sequence[int], max_length: int) -> list[float]:
    """Return the weights of a sum over tokens / `max_length`, then a mean over the sequences that have tokens."""
    sequences = sum(length > 0 for length in lengths)
    return [1 / (sequences * max_length) if length else 0.0 for length in lengths]
