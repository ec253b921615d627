"""Pure parts of the policy update: ratios, the k3 divergence, groups that teach nothing, sums over a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LOG_LIMIT = 20.0
"""exp of it is far beyond any clip, and finite in float32."""
_ROUNDING = 1e-6


def ratio(logp: Tensor, old: Tensor) -> Tensor:
    """The probability ratio rho = exp(logp - old) of every token, kept finite; [N], [N] -> [N]."""
    return (logp - old).clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from sampled tokens, never below 0 (Schulman's k3); [N], [N] -> [N].

    exp(x) - x - 1 with x = reference - logp, which is held at 20 from above so that it stays finite.
    """
    x = (reference - logp).clamp(max=_LOG_LIMIT)
    return x.expm1() - x


def flat_groups(rewards: Tensor) -> Tensor:
    """Which prompt groups teach nothing, their rewards being equal up to rounding; [P, G] -> bool [P]."""
    scale = rewards.abs().amax(1).clamp_min(1)
    return rewards.amax(1) - rewards.amin(1) <= _ROUNDING * scale


def per_token(values: Sequence[float] | Tensor, lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Give every produced token its sequence's value, in float32; B values, B lengths that sum to N -> [N]."""
    spread = torch.as_tensor(values, dtype=torch.float32, device="cpu").repeat_interleave(torch.tensor(lengths))
    return spread.to(device, non_blocking=True)


def weighted_sum(tokens: Tensor, weights: Sequence[float], lengths: Sequence[int]) -> Tensor:
    """Sum over sequences of w_i sum_t of their tokens' values [N]; a scalar.

    `weights` of the sequences at hand, taken from those of the whole step: micro-batches' sums then add up to the
    step's, however it is split.
    """
    return (tokens * per_token(weights, lengths, tokens.device)).sum()
