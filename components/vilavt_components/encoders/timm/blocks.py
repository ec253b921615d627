"""timm's block classes: the forward of each written once, and what it offers to modulators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders.timm.block_parts import (
    Run,
    attention,
    fc1_width,
    heads_of,
    is_differential,
    join,
    merge_heads,
    mlp,
    qkv_width,
    split_heads,
)
from vilavt_toolkit.contracts import BlockSpec

Parts = Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]

_DIFFERENTIAL = "its attention is the difference of two, and keys from outside would enter both."
_RELATIVE = "its attention has a relative bias, which says nothing about keys outside a region."


@dataclass(frozen=True)
class Adapter:
    """How blocks of one class run."""

    forward: Callable[[Any, Tensor, Run], Tensor]
    """(block, x [S, D], run) -> [S, D]"""
    parts: Parts
    """The attentions and MLPs that stand side by side in a block."""

    def spec(self, block: Any, relative: bool) -> BlockSpec:
        """What the block offers; `relative`: its attention has a relative bias."""
        attentions, mlps = self.parts(block)
        if not mlps:
            return _parallel_spec(block)
        width, wide = mlps[0].fc2.out_features, len(mlps) * mlps[0].fc2.out_features
        sites = dict.fromkeys(("norm1", "proj", "norm2", "fc2"), wide)
        sites |= dict.fromkeys(("attention", "mlp", "block"), width)
        sites |= {"qkv": sum(map(qkv_width, attentions)), "fc1": sum(map(fc1_width, mlps))}
        inputs = {"proj": sum(part.proj.in_features for part in attentions)}
        inputs |= {"fc2": sum(part.fc2.in_features for part in mlps)}
        if len(mlps) > 1:
            inputs |= dict.fromkeys(("qkv", "attention", "fc1", "mlp"), wide)
        heads, head_dim = heads_of(attentions[0])
        refused = _RELATIVE if relative else _DIFFERENTIAL if is_differential(attentions[0]) else ""
        return BlockSpec(width, sites, inputs, heads * len(attentions), head_dim, refused)


@cache
def adapters() -> Mapping[type, Adapter]:
    """Every block class this encoder was written for; by exact type, since a subclass may differ."""
    from timm.models import beit, eva, vision_transformer, vision_transformer_relpos

    vit, relpos, beits, evas = (cast(Any, m) for m in (vision_transformer, vision_transformer_relpos, beit, eva))
    scaled = Adapter(partial(_pre_norm, scale=_layer_scale), _one_each)
    gamma = Adapter(partial(_pre_norm, scale=_gamma), _one_each)
    post, parallel = Adapter(_post_norm, _one_each), Adapter(_parallel, _itself)
    many = Adapter(_side_by_side, _several)
    return {
        vit.Block: scaled,
        vit.ResPostBlock: post,
        vit.ParallelScalingBlock: parallel,
        vit.DiffParallelScalingBlock: parallel,
        vit.ParallelThingsBlock: many,
        relpos.RelPosBlock: scaled,
        relpos.ResPostRelPosBlock: post,
        evas.EvaBlock: gamma,
        evas.EvaBlockPostNorm: post,
        beits.Block: gamma,
    }


@cache
def part_types() -> tuple[frozenset[type], frozenset[type]]:
    """The attention and the MLP classes that may be inside a block."""
    import timm.layers
    from timm.models import beit, eva, vision_transformer_relpos

    layers, evas, beits = (cast(Any, m) for m in (timm.layers, eva, beit))
    attentions = {layers.Attention, layers.DiffAttention, layers.AttentionRope, evas.EvaAttention, beits.Attention}
    attentions.add(cast(Any, vision_transformer_relpos).RelPosAttention)
    return frozenset(attentions), frozenset({layers.Mlp, layers.GluMlp, layers.SwiGLU})


def _one_each(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    return [block.attn], [block.mlp]


def _several(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    return [branch.attn for branch in block.attns], [branch.mlp for branch in block.ffns]


def _itself(block: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    # ParallelScalingBlock has its attention's and its MLP's layers directly.
    return [block], []


def _layer_scale(block: Any, branch: int, y: Tensor) -> Tensor:
    scaled: Tensor = (block.ls1, block.ls2)[branch](y)
    return scaled


def _gamma(block: Any, branch: int, y: Tensor) -> Tensor:
    factor: Tensor | None = (block.gamma_1, block.gamma_2)[branch]
    return y if factor is None else y * factor


def _pre_norm(block: Any, x: Tensor, run: Run, scale: Callable[[Any, int, Tensor], Tensor]) -> Tensor:
    """Block, RelPosBlock, EvaBlock, BEiT's Block: every branch reads the norm of the tokens."""
    h = run.at("norm1", x, block.norm1(x))
    y = run.at("attention", h, scale(block, 0, *attention([block.attn], h, run)))
    mid = x + run.drop(block.drop_path1, y)
    h = run.at("norm2", mid, block.norm2(mid))
    y = run.at("mlp", h, scale(block, 1, *mlp([block.mlp], h, run)))
    return run.at("block", x, mid + run.drop(block.drop_path2, y))


def _post_norm(block: Any, x: Tensor, run: Run) -> Tensor:
    """ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm: every branch ends in its norm."""
    (a,) = attention([block.attn], x, run)
    y = run.at("attention", x, run.at("norm1", a, block.norm1(a)))
    mid = x + run.drop(block.drop_path1, y)
    (m,) = mlp([block.mlp], mid, run)
    y = run.at("mlp", mid, run.at("norm2", m, block.norm2(m)))
    return run.at("block", x, mid + run.drop(block.drop_path2, y))


def _side_by_side(block: Any, x: Tensor, run: Run) -> Tensor:
    """ParallelThingsBlock: several attentions, each behind its norm, then several MLPs (Touvron et al., 2022)."""

    def added(branches: Sequence[Any], outputs: Sequence[Tensor]) -> Tensor:
        kept = [run.drop(b.drop_path, b.ls(y)) for b, y in zip(branches, outputs, strict=True)]
        return torch.stack(kept).sum(0)

    h = run.at("norm1", x, join([branch.norm(x) for branch in block.attns]))
    outputs = attention([branch.attn for branch in block.attns], h, run)
    mid = x + run.at("attention", h, added(block.attns, outputs))
    h = run.at("norm2", mid, join([branch.norm(mid) for branch in block.ffns]))
    outputs = mlp([branch.mlp for branch in block.ffns], h, run)
    return run.at("block", x, mid + run.at("mlp", h, added(block.ffns, outputs)))


def _parallel(block: Any, x: Tensor, run: Run) -> Tensor:
    """ParallelScalingBlock and its differential kind: attention and MLP read one norm (Dehghani et al., 2023).

    norm1 is that norm as attention reads it, norm2 as the MLP does; so each can be modulated by itself, and the joint
    projection is applied in its two parts.
    """
    weights, biases = _joint_projection(block)
    normed = block.in_norm(x)
    h, g = run.at("norm1", x, normed), run.at("norm2", x, normed)
    qkv = run.at("qkv", h, F.linear(h, weights[1], biases[1]))
    hidden = run.at("fc1", g, F.linear(g, weights[0], biases[0]))
    a = merge_heads(block, run.attend(*split_heads(block, qkv), block.scale))
    m = block.mlp_drop(block.mlp_act(hidden))
    y = run.at("attention", h, block.ls(run.at("proj", a, _out(block, 0, a))))
    z = run.at("mlp", g, block.ls(run.at("fc2", m, _out(block, 1, m))))
    return run.at("block", x, x + run.drop(block.drop_path, y + z))


def _joint_projection(block: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases of in_proj, for the MLP and for attention."""
    widths = [block.in_split[0], sum(block.in_split[1:])]
    weights = list(block.in_proj.weight.split_with_sizes(widths))
    if block.in_proj.bias is None:
        return weights, [block.mlp_bias, None]
    return weights, list(block.in_proj.bias.split_with_sizes(widths))


def _out(block: Any, branch: int, y: Tensor) -> Tensor:
    """The output projection of attention (0) or the MLP (1); fused ones are applied in parts, the bias once."""
    fused = block.out_proj
    if fused is None:
        projected: Tensor = (block.attn_out_proj, block.mlp_out_proj)[branch](y)
        return projected
    hidden = block.in_split[0]
    weight = fused.weight.split_with_sizes([fused.in_features - hidden, hidden], dim=1)[branch]
    return F.linear(y, weight, fused.bias if branch == 0 else None)


def _parallel_spec(block: Any) -> BlockSpec:
    hidden, width = block.in_split[0], block.in_proj.in_features
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": sum(block.in_split[1:]), "fc1": hidden}
    refused = _DIFFERENTIAL if is_differential(block) else ""
    return BlockSpec(width, sites, {"fc2": hidden}, *heads_of(block), context_refused=refused)
