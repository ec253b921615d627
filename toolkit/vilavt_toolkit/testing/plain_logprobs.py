"""The log-probabilities of produced tokens from all logits at once, for training's chunks to be compared with."""

from __future__ import annotations

from torch import Tensor

from vilavt_toolkit.models.batch import Batch


def plain_logprobs(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities [N] of the produced tokens, row by row; logits [B, L, V]."""
    predicted = (logits.flatten(0, 1).float() / temperature).log_softmax(-1)
    return predicted[batch.targets - 1, batch.ids.flatten()[batch.targets]]
