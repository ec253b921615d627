"""Attention of single tokens over a cache, for models whose query heads share keys, whatever transformers' version."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


@cache
def single_tokens() -> str:
    """The name under which transformers knows it, once asked for."""
    from transformers import AttentionInterface

    AttentionInterface.register("vilavt_single_tokens", _attend)
    return "vilavt_single_tokens"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attend from query [B, H, 1, d] over key, value [B, H', C, d] under a mask [B, 1, 1, C]; [B, 1, H, d].

    Heads that share a key stand as so many queries of its head: under a mask, kernels would have every key copied for
    each of them, and of a token that is most of what is read beside weights.
    """
    rows, heads, _, width = query.shape
    packed = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(packed, key, value, attention_mask, dropout, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None
