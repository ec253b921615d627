"""Attention of single new tokens over a KV cache, fast for models whose query heads share keys."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


@cache
def register_single_token_attention() -> str:
    """Register the attention with transformers, and return the name that `_attn_implementation` takes for it."""
    from transformers import AttentionInterface

    AttentionInterface.register("vilavt_single_tokens", _attend_single_token)
    return "vilavt_single_tokens"


def _attend_single_token(
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

    H is a multiple of H' (grouped queries).
    """
    # The query heads that share a key become several queries of one head. Under a mask sdpa would copy every key for
    # each of them, and for a single token keys and values are most of what is read beside the weights.
    rows, heads, _, width = query.shape
    packed = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(packed, key, value, attention_mask, dropout, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None
