"""open_clip's two residual attention blocks with their parts in the open."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.contracts import At, Attend, BlockSpec
from vilavt_toolkit.errors import BadConfig


def check_block(block: Any) -> None:
    """Refuse what `run_block` was not written for: exact types, subclasses may differ; raises BadConfig."""
    from open_clip import transformer as library
    from torch import nn

    attentions = {
        library.ResidualAttentionBlock: nn.MultiheadAttention,
        library.CustomResidualAttentionBlock: library.Attention,
    }
    wanted = attentions.get(type(block))
    found = type(block) if wanted is None else type(block.attn)
    if found is not wanted or hasattr(block, "ln_1_kv"):
        raise BadConfig(
            f"Encoder 'open_clip' was not written for {found.__name__}; open_clip's own default and custom blocks work."
        )
    if getattr(block.attn, "scaled_cosine", False):
        raise BadConfig(
            "Encoder 'open_clip' has no scaled cosine attention (open_clip's own fails on it too); leave "
            "`scaled_cosine_attn` out of `vision_cfg`, or take `qk_norm`."
        )


def block_spec(block: Any) -> BlockSpec:
    """What a block offers to modulators."""
    width, hidden = block.mlp.c_proj.out_features, block.mlp.c_fc.out_features
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": 3 * width, "fc1": hidden}
    heads = block.attn.num_heads
    return BlockSpec(width, sites, {"fc2": hidden}, heads=heads, head_dim=width // heads)


def run_block(block: Any, x: Tensor, at: At, attend: Attend) -> Tensor:
    """ResidualAttentionBlock and CustomResidualAttentionBlock; x [S, D] -> [S, D]."""
    h = at("norm1", x, block.ln_1(x))
    y = _attention(block.attn, h, at, attend)
    if hasattr(block, "ln_attn"):
        y = block.ln_attn(y)
    middle = x + at("attention", h, block.ls_1(y))
    h = at("norm2", middle, block.ln_2(middle))
    inner = block.mlp.gelu(at("fc1", h, block.mlp.c_fc(h)))
    if hasattr(block.mlp, "ln"):
        inner = block.mlp.ln(inner)
    y = at("fc2", inner, block.mlp.c_proj(inner))
    return at("block", x, middle + at("mlp", h, block.ls_2(y)))


def _attention(part: Any, h: Tensor, at: At, attend: Attend) -> Tensor:
    """Sites qkv and proj of nn.MultiheadAttention, and of open_clip's Attention with its norms; [S, D] -> [S, D]."""
    qkv = at("qkv", h, F.linear(h, part.in_proj_weight, part.in_proj_bias))
    q, k, v = qkv.view(len(h), 3, part.num_heads, -1).unbind(1)
    if hasattr(part, "ln_q"):
        q, k = part.ln_q(q), part.ln_k(k)
    a = attend(q, k, v)
    if getattr(part, "head_scale", None) is not None:
        a = a * part.head_scale.view(-1, 1)
    a = a.flatten(1)
    if hasattr(part, "ln_inner"):
        a = part.ln_inner(a)
    y: Tensor = at("proj", a, part.out_proj(a))
    return y
