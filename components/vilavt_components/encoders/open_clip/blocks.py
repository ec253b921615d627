"""open_clip's two residual attention blocks on packed tokens, with a hook at every site.

`run_block` is their `forward`, line by line, with two differences: attention is `attend`, which keeps every region to
itself, and every result passes through `site(name, x, y)`, where modulators may change it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import Attend, BlockSpec, SiteHook
from vilavt_toolkit.errors import BadConfig


def check_block(block: Any) -> None:
    """Raise BadConfig for a block that `run_block` was not written for."""
    from open_clip import transformer as library

    attentions = {
        library.ResidualAttentionBlock: nn.MultiheadAttention,
        library.CustomResidualAttentionBlock: library.Attention,
    }
    # Exact types, since a subclass may compute something else. `ln_1_kv` marks a block of cross-attention.
    wanted = attentions.get(type(block))
    found = type(block) if wanted is None else type(block.attn)
    if found is not wanted or hasattr(block, "ln_1_kv"):
        raise BadConfig(
            f"Encoder 'open_clip' was not written for {found.__name__}. Choose a model with open_clip's own default or "
            "custom blocks, such as ViT-B-32."
        )
    if getattr(block.attn, "scaled_cosine", False):
        raise BadConfig(
            "Encoder 'open_clip' has no scaled cosine attention (open_clip's own fails on it too). Leave "
            "`scaled_cosine_attn` out of `vision_cfg`, or take `qk_norm`."
        )


def block_spec(block: Any) -> BlockSpec:
    """Describe what a block offers to modulators."""
    width, hidden = block.mlp.c_proj.out_features, block.mlp.c_fc.out_features
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": 3 * width, "fc1": hidden}
    heads = block.attn.num_heads
    norms = {"qkv": getattr(block.attn, "ln_q", None), "proj": getattr(block, "ln_attn", None)}
    norm_follows = frozenset(name for name, norm in norms.items() if not isinstance(norm, nn.Identity | None))
    return BlockSpec(width, sites, {"fc2": hidden}, heads=heads, head_dim=width // heads, norm_follows=norm_follows)


def run_block(block: Any, x: Tensor, site: SiteHook, attend: Attend) -> Tensor:
    """Run a ResidualAttentionBlock or CustomResidualAttentionBlock; x [S, D] -> [S, D].

    open_clip's `CustomResidualAttentionBlock.forward`: x = x + ls_1(ln_attn(attn(ln_1(x)))), then
    x = x + ls_2(mlp(ln_2(x))). The plain block has no `ln_attn`.
    """
    h = site("norm1", x, block.ln_1(x))
    y = _run_attention(block.attn, h, site, attend)
    if hasattr(block, "ln_attn"):
        y = block.ln_attn(y)
    # Site `attention` follows norm and layer scale: its y is exactly what the branch adds to the residual stream.
    mid = x + site("attention", h, block.ls_1(y))
    h = site("norm2", mid, block.ln_2(mid))
    # `mlp` is a Sequential of c_fc, gelu, c_proj, and with `scale_fc` an `ln` after gelu.
    hidden = block.mlp.gelu(site("fc1", h, block.mlp.c_fc(h)))
    if hasattr(block.mlp, "ln"):
        hidden = block.mlp.ln(hidden)
    y = site("fc2", hidden, block.mlp.c_proj(hidden))
    return site("block", x, mid + site("mlp", h, block.ls_2(y)))


def _run_attention(attention: Any, h: Tensor, site: SiteHook, attend: Attend) -> Tensor:
    """Run nn.MultiheadAttention, or open_clip's Attention with its norms, with sites qkv and proj; [S, D] -> [S, D]."""
    # Both keep the three projections in one tensor, `in_proj_weight` [3 D, D].
    qkv = site("qkv", h, F.linear(h, attention.in_proj_weight, attention.in_proj_bias))
    q, k, v = qkv.view(len(h), 3, attention.num_heads, -1).unbind(1)
    if hasattr(attention, "ln_q"):
        q, k = attention.ln_q(q), attention.ln_k(k)
    a = attend(q, k, v)
    # A learned factor per head (`scale_heads`), [H, 1, 1] in open_clip, where heads come before tokens.
    if getattr(attention, "head_scale", None) is not None:
        a = a * attention.head_scale.view(-1, 1)
    a = a.flatten(1)
    if hasattr(attention, "ln_inner"):
        a = attention.ln_inner(a)
    y: Tensor = site("proj", a, attention.out_proj(a))
    return y
