"""Log-probabilities of the tokens that the model produced, from the logits of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vilavt_toolkit.models.batch import Batch


def target_logprobs(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities [N], in float32, of the N produced tokens, row by row; logits [B, L, V]."""
    produced_logits, tokens = _select_produced(logits, batch)
    return _token_logprobs(produced_logits, tokens, temperature)


def target_logprobs_and_hits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return `target_logprobs` [N], and a bool [N]: True where a token is the likeliest. Gathers the logits once."""
    produced_logits, tokens = _select_produced(logits, batch)
    return _token_logprobs(produced_logits, tokens, 1.0), produced_logits.detach().argmax(-1) == tokens


def logprobs_and_entropy(logits: Tensor, batch: Batch, temperature: float, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Return `target_logprobs` [N] and, without gradient, the entropy [N] in nats of each token's distribution.

    Computed `chunk` tokens at a time, and again in the backward pass, so that no second [N, V] in float32 stays in
    memory. Values and gradients do not depend on `chunk`.
    """
    produced_logits, tokens = _select_produced(logits, batch)
    logprobs, entropy = [], []
    chunks = list(zip(torch.split(produced_logits, chunk), torch.split(tokens, chunk), strict=True))
    for chunk_logits, chunk_tokens in chunks:
        if len(chunks) == 1:
            # A single chunk is as large as what checkpointing would save.
            logprobs.append(_token_logprobs(chunk_logits, chunk_tokens, temperature))
        else:
            logprobs.append(
                checkpoint(
                    _token_logprobs, chunk_logits, chunk_tokens, temperature,
                    use_reentrant=False, preserve_rng_state=False,
                )
            )  # fmt: skip
        with torch.no_grad():
            probabilities = (chunk_logits.float() / temperature).softmax(-1)
            # `entr` is -p log p, with its limit 0 at p = 0.
            entropy.append(torch.special.entr(probabilities).sum(-1))
    return torch.cat(logprobs), torch.cat(entropy)


def _select_produced(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits [N, V] that predict the produced tokens, and these tokens [N]."""
    # The logits at a place predict the next token, hence - 1. No row begins with a produced token.
    produced_logits = logits.flatten(0, 1).index_select(0, batch.targets - 1)
    return produced_logits, batch.ids.flatten().index_select(0, batch.targets)


def _token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    # Half precision would round log-probabilities to two or three digits, and a policy's ratio is their exponential.
    return -F.cross_entropy(logits.float() / temperature, tokens, reduction="none")
