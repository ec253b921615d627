"""Log-probabilities of the tokens that the model produced, from the states of the columns that predict them.

The head is applied to those columns alone, some at a time. The logits of a chunk are computed again in the backward
pass, so that no more than one chunk of them is ever in memory. Values and gradients do not depend on the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vilavt_toolkit.contracts import LanguageModel
from vilavt_toolkit.models.batch import Batch

_CHUNK_BYTES = 256 << 20
"""Size of a chunk's logits in float32. The softmax and its gradient hold some three times as much for a moment."""


def target_logprobs(
    language_model: LanguageModel, states: Tensor, batch: Batch, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """Return the log-probabilities [N], in float32, of the N produced tokens, row by row.

    `states` [B, L, D] are those of `LanguageModel.run_layers`, and `chunk` is the number of tokens whose logits are in
    memory at once (None: as many as fit into a fixed size).
    """

    def score(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return (_token_logprobs(logits, tokens, temperature),)

    (logprobs,) = _score_in_chunks(language_model, states, batch, chunk, score)
    return logprobs


def target_logprobs_and_hits(
    language_model: LanguageModel, states: Tensor, batch: Batch, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return `target_logprobs` [N], and a bool [N]: True where a token is the likeliest."""

    def score(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return _token_logprobs(logits, tokens, 1.0), logits.detach().argmax(-1) == tokens

    logprobs, hits = _score_in_chunks(language_model, states, batch, chunk, score)
    return logprobs, hits


def logprobs_and_entropy(
    language_model: LanguageModel, states: Tensor, batch: Batch, temperature: float, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return `target_logprobs` [N] and, without gradient, the entropy [N] in nats of each token's distribution."""

    def score(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logprobs = _token_logprobs(logits, tokens, temperature)
        probabilities = (logits.detach().float() / temperature).softmax(-1)
        # `entr` is -p log p, with its limit 0 at p = 0.
        return logprobs, torch.special.entr(probabilities).sum(-1)

    logprobs, entropy = _score_in_chunks(language_model, states, batch, chunk, score)
    return logprobs, entropy


def _score_in_chunks(
    language_model: LanguageModel,
    states: Tensor,
    batch: Batch,
    chunk: int | None,
    score: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
) -> list[Tensor]:
    """Return what `score` makes of the logits [n, V] and tokens [n] of each chunk, as tensors [N]."""

    def score_chunk(chunk_states: Tensor, chunk_tokens: Tensor) -> tuple[Tensor, ...]:
        return score(language_model.compute_logits(chunk_states), chunk_tokens)

    # The state of a column predicts the next token, hence - 1. No row begins with a produced token.
    predicting = states.flatten(0, 1).index_select(0, batch.targets - 1)
    tokens = batch.ids.flatten().index_select(0, batch.targets)
    rows = chunk or max(1, _CHUNK_BYTES // (4 * language_model.vocab_size))
    # Without a produced token there is one empty chunk, so that the head is called in every micro-batch.
    chunks = list(zip(torch.split(predicting, rows), torch.split(tokens, rows), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        # A single chunk is as large as what recomputing would need in the backward pass.
        parts = [score_chunk(*part) for part in chunks]
    else:
        parts = [checkpoint(score_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def _token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logprobs: Tensor = _TokenLogprobs.apply(logits, tokens, temperature)
    return logprobs


class _TokenLogprobs(torch.autograd.Function):
    """The log-softmax of logits [n, V] at the tokens [n], as `F.cross_entropy` computes it, in less memory.

    The logits themselves wait for the backward pass, and not their log-softmax in float32. Their gradient is the one
    other tensor of that size that is made there, where the chain of torch's own operations makes three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        # Half precision would round log-probabilities to two or three digits, and a policy's ratio is their
        # exponential. The maximum is subtracted first, so that what is left is as exact as it can be.
        scaled = _scale(logits, temperature)
        largest = scaled.amax(-1, keepdim=True)
        chosen = scaled.gather(-1, tokens[:, None]) - largest
        log_sum = (scaled - largest).exp_().sum(-1, keepdim=True).log_()
        ctx.save_for_backward(logits, tokens, largest, log_sum)
        ctx.temperature = temperature
        return (chosen - log_sum)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, largest, log_sum = ctx.saved_tensors
        gradient = gradient[:, None] / ctx.temperature
        # The gradient of log p_t by the logits: 1 at the token, less the probabilities.
        found = (_scale(logits, ctx.temperature) - largest).sub_(log_sum).exp_().mul_(-gradient)
        found.scatter_add_(-1, tokens[:, None], gradient)
        return found.to(logits.dtype), None, None


def _scale(logits: Tensor, temperature: float) -> Tensor:
    # Dividing by 1 would only copy them.
    return logits.float() if temperature == 1 else logits.float() / temperature
