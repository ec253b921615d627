"""timm's block classes on packed tokens: one forward per class, and the sites that it offers to modulators.

Each `_run_...` below is the `forward` of the timm classes that it names, line by line. Two things differ. Attention is
`hooks.attend`, which keeps every region to itself (or adds keys, as a modulator asks). And every result passes through
`hooks.site(name, x, y)`: x went into that part of the block, y came out, and what the modulators return goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders.timm.branches import (
    BlockHooks,
    concat_branches,
    fc1_width,
    head_shape,
    is_differential,
    merge_heads,
    normalises_qk,
    qkv_width,
    run_attentions,
    run_mlps,
    split_heads,
)
from vilavt_toolkit.contracts import BlockSpec

FindBranches = Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]

# Which of a block's two branches is meant, where timm numbers them (ls1 and ls2, gamma_1 and gamma_2).
_ATTENTION, _MLP = 0, 1
_DIFFERENTIAL = "its attention is the difference of two attentions, and context keys would enter both."
_RELATIVE = "its attention has a relative bias, which is not defined for keys outside a region."


@dataclass(frozen=True)
class BlockAdapter:
    """Holds how the blocks of one timm class run on packed tokens."""

    forward: Callable[[Any, Tensor, BlockHooks], Tensor]
    """Runs a block: (block, x [S, D], hooks) -> [S, D]."""
    find_branches: FindBranches
    """Finds a block's attentions and its MLPs; no MLPs where the block itself holds the layers of both."""
    ends_in_norms: bool = False
    """True if each branch ends in a norm."""

    def block_spec(self, block: Any, has_relative_bias: bool) -> BlockSpec:
        """Describe what a block offers to modulators."""
        attentions, mlps = self.find_branches(block)
        if not mlps:
            return _parallel_scaling_spec(block)
        width, wide = mlps[0].fc2.out_features, len(mlps) * mlps[0].fc2.out_features
        # Inside the branches a site is as wide as all branches together; what joins the residual stream is summed.
        sites = dict.fromkeys(("norm1", "proj", "norm2", "fc2"), wide)
        sites |= dict.fromkeys(("attention", "mlp", "block"), width)
        sites |= {"qkv": sum(map(qkv_width, attentions)), "fc1": sum(map(fc1_width, mlps))}
        inputs = {"proj": sum(branch.proj.in_features for branch in attentions)}
        inputs |= {"fc2": sum(branch.fc2.in_features for branch in mlps)}
        if len(mlps) > 1:
            inputs |= dict.fromkeys(("qkv", "attention", "fc1", "mlp"), wide)
        heads, head_dim = head_shape(attentions[0])
        reason = ""
        if has_relative_bias:
            reason = _RELATIVE
        elif is_differential(attentions[0]):
            reason = _DIFFERENTIAL
        return BlockSpec(
            width,
            sites,
            inputs,
            heads=heads * len(attentions),
            head_dim=head_dim,
            no_context_reason=reason,
            norm_follows=_norm_follows(attentions, self.ends_in_norms),
        )


@cache
def block_adapters() -> Mapping[type, BlockAdapter]:
    """Return the adapter of every timm block class that this encoder was written for."""
    # By exact type: a subclass may override `forward`, which our copy of it would silently ignore.
    from timm.models import beit, eva, vision_transformer, vision_transformer_relpos

    vit, relpos, beits, evas = (cast(Any, m) for m in (vision_transformer, vision_transformer_relpos, beit, eva))
    scaled = BlockAdapter(partial(_run_pre_norm, scale=_apply_layer_scale), _single_branches)
    gamma = BlockAdapter(partial(_run_pre_norm, scale=_apply_gamma), _single_branches)
    post_norm = BlockAdapter(_run_post_norm, _single_branches, ends_in_norms=True)
    parallel_scaling = BlockAdapter(_run_parallel_scaling, _fused_branches)
    return {
        vit.Block: scaled,
        vit.ResPostBlock: post_norm,
        vit.ParallelScalingBlock: parallel_scaling,
        vit.DiffParallelScalingBlock: parallel_scaling,
        vit.ParallelThingsBlock: BlockAdapter(_run_parallel_things, _parallel_branches),
        relpos.RelPosBlock: scaled,
        relpos.ResPostRelPosBlock: post_norm,
        evas.EvaBlock: gamma,
        evas.EvaBlockPostNorm: post_norm,
        beits.Block: gamma,
    }


@cache
def branch_types() -> tuple[frozenset[type], frozenset[type]]:
    """Return the attention classes and the MLP classes that may be inside a block, by exact type."""
    import timm.layers
    from timm.models import beit, eva, vision_transformer_relpos

    layers, evas, beits = (cast(Any, m) for m in (timm.layers, eva, beit))
    attentions = {layers.Attention, layers.DiffAttention, layers.AttentionRope, evas.EvaAttention, beits.Attention}
    attentions.add(cast(Any, vision_transformer_relpos).RelPosAttention)
    return frozenset(attentions), frozenset({layers.Mlp, layers.GluMlp, layers.SwiGLU})


def _norm_follows(attentions: Sequence[Any], ends_in_norms: bool = False) -> frozenset[str]:
    ends = frozenset({"proj", "fc2"} if ends_in_norms else ())
    return ends | {"qkv"} if any(normalises_qk(branch) for branch in attentions) else ends


def _single_branches(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    return [block.attn], [block.mlp]


def _parallel_branches(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    return [branch.attn for branch in block.attns], [branch.mlp for branch in block.ffns]


def _fused_branches(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    # ParallelScalingBlock has the layers of its attention and its MLP as attributes of its own.
    return [block], []


def _apply_layer_scale(block: Any, branch: int, y: Tensor) -> Tensor:
    scaled: Tensor = (block.ls1, block.ls2)[branch](y)
    return scaled


def _apply_gamma(block: Any, branch: int, y: Tensor) -> Tensor:
    factor: Tensor | None = (block.gamma_1, block.gamma_2)[branch]
    return y if factor is None else y * factor


def _run_pre_norm(block: Any, x: Tensor, hooks: BlockHooks, scale: Callable[[Any, int, Tensor], Tensor]) -> Tensor:
    """Run a Block, RelPosBlock, EvaBlock or BEiT's Block, whose branches read normed tokens; x [S, D] -> [S, D].

    timm's `Block.forward`: x = x + drop_path1(ls1(attn(norm1(x)))), then x = x + drop_path2(ls2(mlp(norm2(x)))).
    """
    h = hooks.site("norm1", x, block.norm1(x))
    (y,) = run_attentions([block.attn], h, hooks)
    # Site `attention` follows the layer scale: its y is exactly what the branch adds to the residual stream. It comes
    # before stochastic depth, so that a dropped branch drops its modulation too.
    y = hooks.site("attention", h, scale(block, _ATTENTION, y))
    mid = x + hooks.drop_branch(block.drop_path1, y)
    h = hooks.site("norm2", mid, block.norm2(mid))
    (y,) = run_mlps([block.mlp], h, hooks)
    y = hooks.site("mlp", h, scale(block, _MLP, y))
    return hooks.site("block", x, mid + hooks.drop_branch(block.drop_path2, y))


def _run_post_norm(block: Any, x: Tensor, hooks: BlockHooks) -> Tensor:
    """Run a ResPostBlock, ResPostRelPosBlock or EvaBlockPostNorm, whose branches end in a norm; x [S, D] -> [S, D].

    timm's `ResPostBlock.forward`: x = x + drop_path1(norm1(attn(x))), then x = x + drop_path2(norm2(mlp(x))).
    """
    (y,) = run_attentions([block.attn], x, hooks)
    # The norm ends the branch here, so sites norm1 and attention have the same y; they differ in their x.
    y = hooks.site("attention", x, hooks.site("norm1", y, block.norm1(y)))
    mid = x + hooks.drop_branch(block.drop_path1, y)
    (y,) = run_mlps([block.mlp], mid, hooks)
    y = hooks.site("mlp", mid, hooks.site("norm2", y, block.norm2(y)))
    return hooks.site("block", x, mid + hooks.drop_branch(block.drop_path2, y))


def _run_parallel_things(block: Any, x: Tensor, hooks: BlockHooks) -> Tensor:
    """Run a ParallelThingsBlock: n attentions of the same x, then n MLPs (Touvron et al., 2022); x [S, D] -> [S, D].

    timm's `ParallelThingsBlock.forward`: x = x + stack([attn(x) for attn in attns]).sum(0), then the same with ffns.
    Each of `attns` and `ffns` is a norm, the branch, a layer scale and stochastic depth.
    """

    def sum_branches(branches: Sequence[Any], outputs: Sequence[Tensor]) -> Tensor:
        scaled = [hooks.drop_branch(b.drop_path, b.ls(y)) for b, y in zip(branches, outputs, strict=True)]
        # Stacked and summed as timm does: adding one after another would round differently.
        return torch.stack(scaled).sum(0)

    # Every branch has a norm of its own, so site norm1 is [S, n D] while its x is [S, D].
    h = hooks.site("norm1", x, concat_branches([branch.norm(x) for branch in block.attns]))
    outputs = run_attentions([branch.attn for branch in block.attns], h, hooks)
    mid = x + hooks.site("attention", h, sum_branches(block.attns, outputs))
    h = hooks.site("norm2", mid, concat_branches([branch.norm(mid) for branch in block.ffns]))
    outputs = run_mlps([branch.mlp for branch in block.ffns], h, hooks)
    return hooks.site("block", x, mid + hooks.site("mlp", h, sum_branches(block.ffns, outputs)))


def _run_parallel_scaling(block: Any, x: Tensor, hooks: BlockHooks) -> Tensor:
    """Run a ParallelScalingBlock or DiffParallelScalingBlock (Dehghani et al., 2023); x [S, D] -> [S, D].

    timm's `ParallelScalingBlock.forward`: y = in_proj(in_norm(x)), split into the MLP's hidden layer, q, k and v; then
    x = x + drop_path(ls(out_proj(cat(attention, mlp)))). Attention and MLP read one norm and share both projections.
    """
    weights, biases = _split_in_proj(block)
    normed = block.in_norm(x)
    # One norm, two sites: norm1 as attention reads it, norm2 as the MLP does, so that each can be modulated alone.
    # For that the joint projection is applied in its two parts, which is the same product.
    h, g = hooks.site("norm1", x, normed), hooks.site("norm2", x, normed)
    qkv = hooks.site("qkv", h, F.linear(h, weights[_ATTENTION], biases[_ATTENTION]))
    hidden = hooks.site("fc1", g, F.linear(g, weights[_MLP], biases[_MLP]))
    a = merge_heads(block, hooks.attend(*split_heads(block, qkv), block.scale))
    m = block.mlp_drop(block.mlp_act(hidden))
    # The layer scale is linear, so scaling each branch equals scaling their sum.
    y = hooks.site("attention", h, block.ls(hooks.site("proj", a, _project_out(block, _ATTENTION, a))))
    z = hooks.site("mlp", g, block.ls(hooks.site("fc2", m, _project_out(block, _MLP, m))))
    return hooks.site("block", x, x + hooks.drop_branch(block.drop_path, y + z))


def _split_in_proj(block: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Split weight and bias of `in_proj` into the rows of attention and of the MLP, in this order."""
    # timm lays the MLP's hidden layer first (`in_split`).
    widths = [block.in_split[0], sum(block.in_split[1:])]
    mlp, attention = block.in_proj.weight.split_with_sizes(widths)
    if block.in_proj.bias is None:
        # Without `qkv_bias` only the MLP has a bias, as a parameter of its own.
        return [attention, mlp], [None, block.mlp_bias]
    mlp_bias, attention_bias = block.in_proj.bias.split_with_sizes(widths)
    return [attention, mlp], [attention_bias, mlp_bias]


def _project_out(block: Any, branch: int, y: Tensor) -> Tensor:
    """Apply the output projection of attention or of the MLP; y [S, D or hidden] -> [S, D]."""
    fused = block.out_proj
    if fused is None:
        projected: Tensor = (block.attn_out_proj, block.mlp_out_proj)[branch](y)
        return projected
    hidden = block.in_split[0]
    weight = fused.weight.split_with_sizes([fused.in_features - hidden, hidden], dim=1)[branch]
    # The two halves are added, and their joint bias must count once: it goes with attention.
    return F.linear(y, weight, fused.bias if branch == _ATTENTION else None)


def _parallel_scaling_spec(block: Any) -> BlockSpec:
    hidden, width = block.in_split[0], block.in_proj.in_features
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": sum(block.in_split[1:]), "fc1": hidden}
    # Heads are those of the attention call: differential attention has twice as many, see `head_shape`.
    heads, head_dim = head_shape(block)
    reason = _DIFFERENTIAL if is_differential(block) else ""
    return BlockSpec(
        width,
        sites,
        {"fc2": hidden},
        heads=heads,
        head_dim=head_dim,
        no_context_reason=reason,
        norm_follows=_norm_follows([block]),
    )
