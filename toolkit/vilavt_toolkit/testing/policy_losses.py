"""The claims that every registered policy loss must meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vilavt_toolkit.contracts import PolicyLoss
from vilavt_toolkit.registry import policy_losses
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance
from vilavt_toolkit.training.reinforcement.policy_math import repeat_per_token, weighted_sum

_LENGTHS = (2, 4, 0, 1, 5)
"""Produced tokens of every sequence of a step; one is empty."""
_for_every_instance = bench.for_every_instance(policy_losses)


def _random_tokens(shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities under new and old weights, up to `shift` apart, and advantages; [12] each."""
    # A generator of its own: the same tokens in every claim, whatever ran before.
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(12, generator=generator) - 0.1
    logp = old + shift * (2 * torch.rand(12, generator=generator) - 1)
    advantages = repeat_per_token(torch.randn(len(_LENGTHS), generator=generator), _LENGTHS)
    return logp.requires_grad_(), old, advantages


def _compute_loss(
    part: PolicyLoss, logp: Tensor, old: Tensor, gains: Tensor, lengths: Sequence[int] = _LENGTHS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and gradient of every token, and True if it is clipped; [N] each."""
    with bench.no_synchronisation():
        loss, clipped = part.sequence_losses(logp, old, gains, lengths)
    assert loss.shape == clipped.shape == logp.shape, f"{len(logp)} tokens have losses {list(loss.shape)}"
    assert clipped.dtype == torch.bool, f"clipped is {clipped.dtype}, not bool"
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.detach(), gradient, clipped


def _step_gradient(part: PolicyLoss, size: int) -> Tensor:
    logp, old, gains = _random_tokens(1.0)
    weights = part.sequence_weights(_LENGTHS)
    # The weights are those of the whole step: that is what makes the split invisible.
    for start in range(0, len(_LENGTHS), size):
        lengths, first = _LENGTHS[start : start + size], sum(_LENGTHS[:start])
        tokens = slice(first, first + sum(lengths))
        loss, _ = part.sequence_losses(logp[tokens], old[tokens], gains[tokens], lengths)
        bench.backpropagate(weighted_sum(loss, weights[start : start + size], lengths))
    assert logp.grad is not None
    return logp.grad


@_for_every_instance
def begins_as_reinforce(instance: Instance[PolicyLoss]) -> None:
    """With equal weights in sampling and learning its gradient is REINFORCE's, -A, and nothing is clipped."""
    part = instance.build()
    logp, old, gains = _random_tokens(0.0)
    _, gradient, clipped = _compute_loss(part, logp, old, gains)
    bench.assert_close(gradient, -gains, "the gradient on the first inner step and -A")
    assert not clipped.any(), "tokens are clipped under the weights that sampled them"


@_for_every_instance
def reports_what_it_clips(instance: Instance[PolicyLoss]) -> None:
    """A token has no gradient exactly if it is reported as clipped."""
    part = instance.build()
    _, gradient, clipped = _compute_loss(part, *_random_tokens(3.0))
    assert not clipped.all(), "ratios from e^-3 to e^3 are all clipped"
    assert not gradient[clipped].any(), "a clipped token has a gradient"
    assert gradient[~clipped].all(), "a token that is not clipped has no gradient"


@_for_every_instance
def treats_every_sequence_alone(instance: Instance[PolicyLoss]) -> None:
    """A token's loss and gradient do not depend on the tokens of other sequences."""
    part = instance.build()
    # Fewer sequences in another order: whitening advantages over a batch, for one, would change every value.
    chosen = [6, 2, 3, 4, 5]
    logp, old, gains = _random_tokens(1.0)
    loss, gradient, _ = _compute_loss(part, logp, old, gains)
    fewer = _compute_loss(part, logp.detach()[chosen].requires_grad_(), old[chosen], gains[chosen], (1, 4))
    bench.assert_close(fewer[0], loss[chosen], "loss of tokens among fewer others")
    bench.assert_close(fewer[1], gradient[chosen], "gradient of tokens among fewer others")


@_for_every_instance
def stays_finite(instance: Instance[PolicyLoss]) -> None:
    """Loss and gradient are finite, however far the weights have moved."""
    part = instance.build()
    loss, gradient, _ = _compute_loss(part, *_random_tokens(500.0))
    assert loss.isfinite().all() and gradient.isfinite().all(), "log-ratios of 500 give what is not finite"


@_for_every_instance
def weighs_a_whole_step(instance: Instance[PolicyLoss]) -> None:
    """Weights are positive, 0 for an empty sequence, and move with their sequences."""
    part = instance.build()
    weights = part.sequence_weights(_LENGTHS)
    assert len(weights) == len(_LENGTHS), f"{len(_LENGTHS)} sequences have {len(weights)} weights"
    for length, weight in zip(_LENGTHS, weights, strict=True):
        assert math.isfinite(weight) and (weight > 0) == (length > 0), f"{length} tokens weigh {weight}"
    assert part.sequence_weights(_LENGTHS[::-1]) == weights[::-1], "weights depend on the order of the sequences"
    assert not any(part.sequence_weights([0, 0])), "sequences without tokens weigh something"


@_for_every_instance
def is_the_same_in_micro_batches(instance: Instance[PolicyLoss]) -> None:
    """A step has the same gradient split into micro-batches of any size."""
    part = instance.build()
    whole = _step_gradient(part, len(_LENGTHS))
    for size in (1, 2, 3):
        bench.assert_close(_step_gradient(part, size), whole, f"gradient in micro-batches of {size}", 1e-6)


CLAIMS = (
    begins_as_reinforce,
    reports_what_it_clips,
    treats_every_sequence_alone,
    stays_finite,
    weighs_a_whole_step,
    is_the_same_in_micro_batches,
)
