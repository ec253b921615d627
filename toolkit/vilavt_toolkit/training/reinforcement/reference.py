"""The reference: the policy that reinforcement started from, which `rl.kl` holds the policy to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vilavt_toolkit.models.adapters import adapters_switched_off, is_adapter
from vilavt_toolkit.models.batch import Batch
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.losses import target_logprobs
from vilavt_toolkit.training.reinforcement.rollout_weights import restored_weights
from vilavt_toolkit.training.trainable import trainable_parameters


class Reference:
    """Gives the model of the reference while its log-probabilities are computed.

    Without a model of its own it is the policy with its adapters switched off. It is no `nn.Module`, so that a model
    that is to stay on the CPU is not moved with the policy.
    """

    def __init__(self, held: VisualChatModel | None = None, stays_on_cpu: bool = False) -> None:
        self.held = held.eval().requires_grad_(False) if held is not None else None
        """A frozen copy of the start."""
        self.stays_on_cpu = stays_on_cpu
        """True if the copy is on the policy's device only inside of `lend`."""

    @contextmanager
    def lend(self, policy: VisualChatModel) -> Iterator[VisualChatModel]:
        """Give a model on the policy's device whose weights are those of the start."""
        if self.held is None:
            with adapters_switched_off(policy):
                yield policy
        elif self.stays_on_cpu:
            # What is put back is the copy that never left the CPU: nothing is written to it.
            with restored_weights(self.held):
                yield self.held.to(policy.device)
        else:
            yield self.held.to(policy.device)


def trains_adapters_only(model: VisualChatModel) -> bool:
    """Return True if every trained weight is one of an adapter, so that the start can be had by switching them off."""
    return all(is_adapter(name) for name, _ in trainable_parameters(model))


@torch.no_grad()
def compute_logprobs(model: VisualChatModel, batch: Batch, temperature: float) -> Tensor:
    """Return the log-probabilities [N] of a batch's produced tokens, without gradient."""
    logprobs = target_logprobs(model.language_model, model.run_layers(batch), batch, temperature)
    # Autocast caches casts of weights. Those made here without gradient must not reach the update.
    torch.clear_autocast_cache()
    return logprobs


def sum_sequences(values: Tensor, lengths: Sequence[int]) -> list[float]:
    """Return the sum over every sequence of the values [N] of tokens; B `lengths` that sum to N."""
    # In float64, since rollouts of thousands of tokens are compared with each other to their last digits.
    return [float(part.sum()) for part in torch.split(values.double().cpu(), list(lengths))]
