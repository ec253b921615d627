"""Log-probabilities of the model's own tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.dialogue.batch import Batch


def target_logprobs(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N] in float32 of the N produced tokens, row by row; logits [B, L, V]."""
    flat = logits.flatten(0, 1).index_select(0, batch.targets - 1).float() / temperature
    wanted = batch.ids.flatten().index_select(0, batch.targets)
    return -F.cross_entropy(flat, wanted, reduction="none")


@torch.no_grad()
def target_hits(logits: Tensor, batch: Batch) -> Tensor:
    """Whether each of the N produced tokens is the likeliest; [N]."""
    flat = logits.flatten(0, 1).index_select(0, batch.targets - 1)
    return flat.argmax(-1) == batch.ids.flatten().index_select(0, batch.targets)
