"""Attention and MLP of timm's blocks with their parts in the open, for any number of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.contracts import At, Attend, Bias
from vilavt_toolkit.packed.tokens import Layout, spread


@dataclass(frozen=True)
class Run:
    """What a block's forward is given beside its tokens."""

    at: At
    attend: Attend
    layout: Layout
    bias: Bias | None = None

    def drop(self, path: Any, y: Tensor) -> Tensor:
        """Stochastic depth of a branch: whole regions, as timm drops whole images."""
        rate = getattr(path, "drop_prob", 0.0)
        if rate == 0 or not path.training:
            return y
        kept = torch.rand(len(self.layout.sizes), 1, device=y.device) >= rate
        factor = kept.to(y.dtype) / (1 - rate if path.scale_by_keep else 1)
        return y * spread(factor, self.layout.region_of(y.device))


def join(parts: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Side by side; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def attention(parts: Sequence[Any], h: Tensor, run: Run) -> list[Tensor]:
    """Sites qkv and proj of timm attentions side by side; h [S, n D] -> n of [S, D].

    Their heads are attended over in one call.
    """
    inputs = h.chunk(len(parts), dim=-1)
    made = join([_project(part, x) for part, x in zip(parts, inputs, strict=True)])
    rows = run.at("qkv", h, made).split_with_sizes([qkv_width(part) for part in parts], dim=-1)
    split = [split_heads(part, row) for part, row in zip(parts, rows, strict=True)]
    q, k, v = (join(heads, dim=1) for heads in zip(*split, strict=True))
    attended = run.attend(q, k, v, parts[0].scale, run.bias).chunk(len(parts), dim=1)
    found = [_gated(part, merge_heads(part, a), x) for part, a, x in zip(parts, attended, inputs, strict=True)]
    projected = join([part.proj(a) for part, a in zip(parts, found, strict=True)])
    outputs = run.at("proj", join(found), projected).chunk(len(parts), dim=-1)
    return [part.proj_drop(y) for part, y in zip(parts, outputs, strict=True)]


def mlp(parts: Sequence[Any], h: Tensor, run: Run) -> list[Tensor]:
    """Sites fc1 and fc2 of timm MLPs side by side; h [S, n D] -> n of [S, D]."""
    inputs = h.chunk(len(parts), dim=-1)
    made = join([_fc1(part, x) for part, x in zip(parts, inputs, strict=True)])
    hidden = run.at("fc1", h, made).split_with_sizes([fc1_width(part) for part in parts], dim=-1)
    active = [_activated(part, x) for part, x in zip(parts, hidden, strict=True)]
    projected = join([part.fc2(x) for part, x in zip(parts, active, strict=True)])
    outputs = run.at("fc2", join(active), projected).chunk(len(parts), dim=-1)
    return [part.drop2(y) for part, y in zip(parts, outputs, strict=True)]


def is_differential(part: Any) -> bool:
    """Whether attention is the difference of two (DiffAttention, DiffParallelScalingBlock)."""
    return hasattr(part, "lambda_init")


def heads_of(part: Any) -> tuple[int, int]:
    """Heads that are attended over, and their width."""
    width = getattr(part, "head_dim", None) or part.qkv.out_features // (3 * part.num_heads)
    return (2 * part.num_heads, 2 * width) if is_differential(part) else (part.num_heads, width)


def qkv_width(part: Any) -> int:
    """Width of queries, keys and values side by side."""
    linears = [part.q_proj, part.k_proj, part.v_proj] if part.qkv is None else [part.qkv]
    return sum(linear.out_features for linear in linears)


def fc1_width(part: Any) -> int:
    """Width of the MLP's first layer, gate included."""
    width: int = 2 * part.fc1_x.out_features if hasattr(part, "fc1_x") else part.fc1.out_features
    return width


def split_heads(part: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys after their norms, and values; [S, qkv] -> three of [S, H, d]."""
    if is_differential(part):
        return _split_differential(part, rows)
    heads, width = heads_of(part)
    shared = getattr(part, "num_kv_heads", heads)
    widths = [heads * width, shared * width, shared * width]
    q, k, v = (_heads(x, width) for x in rows.split_with_sizes(widths, dim=-1))
    if hasattr(part, "q_norm"):
        q, k = part.q_norm(q), part.k_norm(k)
    if shared != heads:
        k, v = (_repeated(x, heads // shared) for x in (k, v))
    return q, k, v


def merge_heads(part: Any, attended: Tensor) -> Tensor:
    """What attention gave, heads side by side; [S, H, d] -> [S, H d].

    Of differential attention the difference of every two heads (Ye et al., 2024, equation 1).
    """
    if not is_differential(part):
        return attended.flatten(1)
    first, second = attended.view(len(attended), -1, 2, attended.shape[-1]).unbind(2)
    difference = part.sub_norm(first - part._compute_lambda().type_as(second) * second)
    merged: Tensor = (difference * (1 - part.lambda_init)).flatten(1)
    return merged


def _split_differential(part: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Two heads of half the width ask for each head's values. Filled up with zeros, which change no product, queries
    # and keys are as wide as values, and any attention kernel takes them.
    half = part.head_dim
    q, k, v = rows.chunk(3, dim=-1)
    q, k = part.q_norm(_heads(q, half)), part.k_norm(_heads(k, half))
    return F.pad(q, (0, half)), F.pad(k, (0, half)), _repeated(_heads(v, 2 * half), 2)


def _heads(x: Tensor, width: int) -> Tensor:
    """Channels in heads of `width`; [S, H width] -> [S, H, width]."""
    return x.reshape(len(x), -1, width)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Every head `times` times; [S, H, d] -> [S, H times, d]."""
    return x.unsqueeze(2).expand(-1, -1, times, -1).flatten(1, 2)


def _project(part: Any, h: Tensor) -> Tensor:
    if part.qkv is None:
        return torch.cat([part.q_proj(h), part.k_proj(h), part.v_proj(h)], dim=-1)
    if getattr(part, "q_bias", None) is not None:
        return F.linear(h, part.qkv.weight, torch.cat([part.q_bias, part.k_bias, part.v_bias]))
    y: Tensor = part.qkv(h)
    return y


def _gated(part: Any, attended: Tensor, h: Tensor) -> Tensor:
    """Norm of the attended values and their gate, where the attention has them."""
    if hasattr(part, "norm"):
        attended = part.norm(attended)
    gate = getattr(part, "gate", None)
    return attended if gate is None else attended * gate(h).sigmoid()


def _fc1(part: Any, h: Tensor) -> Tensor:
    if hasattr(part, "fc1_x"):
        return torch.cat([part.fc1_g(h), part.fc1_x(h)], dim=-1)
    y: Tensor = part.fc1(h)
    return y


def _activated(part: Any, hidden: Tensor) -> Tensor:
    """The hidden layer after activation, gate and norm."""
    if hasattr(part, "fc1_x") or hasattr(part, "gate_last"):
        gate, x = hidden.chunk(2, dim=-1)
        if getattr(part, "gate_last", False):
            gate, x = x, gate
        hidden = part.act(gate) * x
    else:
        hidden = part.act(hidden)
    y: Tensor = part.norm(part.drop1(hidden))
    return y
