"""The distance between what sampled the tokens and what trains on them, and its correction by importance sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vilavt_toolkit.training.reinforcement.policy_math import probability_ratio, repeat_per_token, sequence_means


def mismatch_weights(
    old: Tensor,
    sampled: Tensor,
    lengths: Sequence[int],
    kind: Literal["truncate", "mask"],
    level: Literal["token", "sequence"],
    limit: float,
) -> tuple[Tensor, Tensor]:
    """Return the weight of every token's loss [N], without gradient, and where `limit` bounds it, bool [N].

    `old` [N] are log-probabilities by the training forward, `sampled` [N] those of the loop that drew the tokens, of
    sequences one behind the other with `lengths` that sum to N. The weight is their ratio of probabilities, of a token
    or of its whole sequence. Above `limit` it is `limit` (truncated importance sampling, Yao et al., 2025) or 0 (masked
    importance sampling, Liu, Li et al., 2025).
    """
    gaps = (old - sampled).detach()
    if level == "sequence":
        # The log of a product of ratios is their sum.
        gaps = sequence_means(gaps, lengths) * repeat_per_token(lengths, lengths, gaps.device)
    weights = probability_ratio(gaps, torch.zeros_like(gaps))
    is_beyond = weights > limit
    bounded = weights.clamp(max=limit) if kind == "truncate" else weights.masked_fill(is_beyond, 0.0)
    return bounded, is_beyond


def number_turns(produced: Sequence[bool]) -> list[int]:
    """Return the turn, counted from 0, of every token that the model produced in a dialogue."""
    turns, turn, was_own = [], -1, False
    for is_own in produced:
        # Between two turns stands at least the template's beginning of the next.
        turn += is_own and not was_own
        was_own = is_own
        if is_own:
            turns.append(turn)
    return turns
