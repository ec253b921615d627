"""Log-probabilities of the model's own tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.dialogue.batch import Batch


def target_logprobs(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N] in float32 of the N produced tokens, row by row; logits [B, L, V]."""
    flat, wanted = _chosen(logits, batch)
    return _logprobs(flat, wanted, temperature)


def target_logprobs_and_hits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """`target_logprobs` [N], and whether each of these tokens is the likeliest [N]; the logits are gathered once."""
    flat, wanted = _chosen(logits, batch)
    return _logprobs(flat, wanted, 1.0), flat.detach().argmax(-1) == wanted


def _chosen(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits [N, V] that predict the produced tokens, and these tokens [N]."""
    flat = logits.flatten(0, 1).index_select(0, batch.targets - 1)
    return flat, batch.ids.flatten().index_select(0, batch.targets)


def _logprobs(flat: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    return -F.cross_entropy(flat.float() / temperature, wanted, reduction="none")
