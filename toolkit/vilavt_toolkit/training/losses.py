"""Log-probabilities of the model's own tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vilavt_toolkit.models.batch import Batch


def target_logprobs(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N] in float32 of the N produced tokens, row by row; logits [B, L, V]."""
    flat, wanted = _chosen(logits, batch)
    return _logprobs(flat, wanted, temperature)


def target_logprobs_and_hits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """`target_logprobs` [N], and whether each of these tokens is the likeliest [N]; the logits are gathered once."""
    flat, wanted = _chosen(logits, batch)
    return _logprobs(flat, wanted, 1.0), flat.detach().argmax(-1) == wanted


def logprobs_and_entropy(logits: Tensor, batch: Batch, temperature: float, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """`target_logprobs` [N] and, without gradient, the entropy [N] in nats of what each token was drawn from.

    In float32, `chunk` tokens at a time, so that no second [N, V] stays in memory for the backward pass; the values
    and gradients are those of one piece.
    """
    flat, wanted = _chosen(logits, batch)
    pieces = list(zip(torch.split(flat, chunk), torch.split(wanted, chunk), strict=True))
    logprobs = [
        _logprobs(rows, tokens, temperature)
        if len(pieces) == 1
        else checkpoint(_logprobs, rows, tokens, temperature, use_reentrant=False, preserve_rng_state=False)
        for rows, tokens in pieces
    ]
    with torch.no_grad():
        entropy = [torch.special.entr((rows.float() / temperature).softmax(-1)).sum(-1) for rows, _ in pieces]
    return torch.cat(logprobs), torch.cat(entropy)


def _chosen(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits [N, V] that predict the produced tokens, and these tokens [N]."""
    flat = logits.flatten(0, 1).index_select(0, batch.targets - 1)
    return flat, batch.ids.flatten().index_select(0, batch.targets)


def _logprobs(flat: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    return -F.cross_entropy(flat.float() / temperature, wanted, reduction="none")
