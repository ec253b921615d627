"""Pure functions of the policy update: ratios, divergences, groups that teach nothing, sums over a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LOG_LIMIT = 20.0
"""Its exponential is far beyond any clip range, and finite in float32."""
_ROUNDING = 1e-6
"""Relative difference of rewards that is rounding: some units in the last place of float32."""
NO_ADVANTAGE = 1e-3
"""Largest advantage that is rounding: a group of equal rewards, divided by a tiny deviation, is not exactly 0."""


def probability_ratio(logp: Tensor, old: Tensor) -> Tensor:
    """Return the ratio exp(logp - old) of every token, kept finite; [N], [N] -> [N]."""
    # Clamped, since an infinite ratio times an advantage of 0 is NaN. Beyond the limit the gradient is 0.
    return (logp - old).clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()


def sequence_means(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean of its sequence for every token; [N] and B lengths that sum to N -> [N]."""
    sizes = torch.tensor(lengths).to(values.device, non_blocking=True)
    # Numbered on the CPU: on a GPU the size of the result would have to be waited for.
    numbers = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(values.device, non_blocking=True)
    sums = values.new_zeros(len(lengths)).index_add(0, numbers, values)
    return (sums / sizes.clamp_min(1)).index_select(0, numbers)


def k3_divergence(logp: Tensor, reference: Tensor, limit: float | None = None) -> Tensor:
    """Estimate KL(policy || reference) from sampled tokens, from 0 to `limit`; [N], [N] -> [N].

    This is k3 of Schulman, "Approximating KL divergence" (2020): exp(x) - x - 1 with x = reference - logp. x is clamped
    to 20 from above, so that the result stays finite. A token at the limit gets no gradient.
    """
    x = (reference - logp).clamp(max=_LOG_LIMIT)
    # `expm1`, since exp(x) - 1 loses all digits for the small x of a policy near its reference.
    divergence = x.expm1() - x
    return divergence if limit is None else divergence.clamp(max=limit)


def k2_divergence(logp: Tensor, reference: Tensor, limit: float | None = None) -> Tensor:
    """Estimate KL(policy || reference) by k2 of the same source, (reference - logp)^2 / 2; [N], [N] -> [N]."""
    divergence = (reference - logp).square() / 2
    return divergence if limit is None else divergence.clamp(max=limit)


def k1_divergence(logp: Tensor, reference: Tensor, limit: float | None = None) -> Tensor:
    """Estimate KL(policy || reference) by k1 of the same source, logp - reference; [N], [N] -> [N].

    It may be negative, and lies within `limit` on both sides.
    """
    divergence = logp - reference
    return divergence if limit is None else divergence.clamp(-limit, limit)


def find_flat_groups(rewards: Tensor) -> Tensor:
    """Return True for prompt groups whose rewards are equal up to rounding, which teach nothing; [P, G] -> bool [P]."""
    # Relative to the rewards' size, but at least absolute: a reward near 0 may be what is left of larger terms.
    scale = rewards.abs().amax(1).clamp_min(1)
    return rewards.amax(1) - rewards.amin(1) <= _ROUNDING * scale


def repeat_per_token(
    values: Sequence[float] | Tensor, lengths: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Return each sequence's value once per produced token, in float32; B values, B lengths that sum to N -> [N]."""
    # Repeated on the CPU: on a GPU `repeat_interleave` must wait for the device to know the size of its result.
    repeated = torch.as_tensor(values, dtype=torch.float32, device="cpu").repeat_interleave(torch.tensor(lengths))
    return repeated.to(device, non_blocking=True)


def weighted_sum(tokens: Tensor, weights: Sequence[float], lengths: Sequence[int]) -> Tensor:
    """Return the sum over sequences of w_i sum_t x_it, with the tokens' values x [N]; a scalar.

    The weights are of a whole step's sequences, so that the sums of micro-batches add up to the step's.
    """
    return (tokens * repeat_per_token(weights, lengths, tokens.device)).sum()
