"""Attention and MLP branches of timm's blocks, run with a hook at every site.

timm's own `forward` of these modules hides what lies between input and output, so no modulator could change it. The
functions here call the same layers in the same order on packed tokens, and hand every result to `BlockHooks.site`.
They take any number of branches side by side, since a ParallelThingsBlock has several. Letters beside the legend's:
n branches, each of width D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import Attend, Bias, SiteHook
from vilavt_toolkit.packed.tokens import Layout, gather_rows


@dataclass(frozen=True)
class BlockHooks:
    """Holds what the forward of a block needs beside its tokens."""

    site: SiteHook
    attend: Attend
    layout: Layout
    bias: Bias | None = None

    def drop_branch(self, drop_path: Any, y: Tensor) -> Tensor:
        """Apply a block's stochastic depth to the output of a branch; y [S, D] -> [S, D]."""
        # `drop_path` is nn.Identity where the rate is 0.
        rate = getattr(drop_path, "drop_prob", 0.0)
        if rate == 0 or not drop_path.training:
            return y
        # timm's DropPath draws once per image, the first axis of its batch. The first axis here is tokens, so that one
        # number is drawn per region and repeated for all of its tokens.
        survives = torch.rand(len(self.layout.sizes), 1, device=y.device) >= rate
        factor = survives.to(y.dtype) / (1 - rate if drop_path.scale_by_keep else 1)
        return y * gather_rows(factor, self.layout.token_regions(y.device))


def concat_branches(values: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Concatenate the branches' values along `dim`; a single one is returned without a copy."""
    return values[0] if len(values) == 1 else torch.cat(list(values), dim)


def run_attentions(branches: Sequence[Any], h: Tensor, hooks: BlockHooks) -> list[Tensor]:
    """Run timm attentions side by side, with sites qkv and proj; h [S, n D] -> n of [S, D].

    Follows `Attention.forward`, and those of AttentionRope, EvaAttention, DiffAttention, RelPosAttention and BEiT's.
    """
    inputs = h.chunk(len(branches), dim=-1)
    # A site sees all branches as one tensor, so a modulator never has to know how many there are.
    qkv = concat_branches([_project_qkv(branch, x) for branch, x in zip(branches, inputs, strict=True)])
    rows = hooks.site("qkv", h, qkv).split_with_sizes([qkv_width(branch) for branch in branches], dim=-1)
    split = [split_heads(branch, row) for branch, row in zip(branches, rows, strict=True)]
    # One call attends over the heads of all branches, [S, n H, d]: they are independent, and built alike, so the first
    # branch's scale holds for all. `attend` also rotates q and k, which timm does here with apply_rot_embed_cat.
    q, k, v = (concat_branches(heads, dim=1) for heads in zip(*split, strict=True))
    attended = hooks.attend(q, k, v, branches[0].scale, hooks.bias).chunk(len(branches), dim=1)
    merged = [
        _norm_and_gate(branch, merge_heads(branch, a), x)
        for branch, a, x in zip(branches, attended, inputs, strict=True)
    ]
    projected = concat_branches([branch.proj(a) for branch, a in zip(branches, merged, strict=True)])
    outputs = hooks.site("proj", concat_branches(merged), projected).chunk(len(branches), dim=-1)
    return [branch.proj_drop(y) for branch, y in zip(branches, outputs, strict=True)]


def run_mlps(branches: Sequence[Any], h: Tensor, hooks: BlockHooks) -> list[Tensor]:
    """Run timm MLPs side by side, with sites fc1 and fc2; h [S, n D] -> n of [S, D].

    Follows `Mlp.forward`, `GluMlp.forward` and `SwiGLU.forward`.
    """
    inputs = h.chunk(len(branches), dim=-1)
    fc1 = concat_branches([_project_fc1(branch, x) for branch, x in zip(branches, inputs, strict=True)])
    # Site fc1 comes before the activation, and includes the gate of a gated MLP.
    hidden = hooks.site("fc1", h, fc1).split_with_sizes([fc1_width(branch) for branch in branches], dim=-1)
    active = [_activate_hidden(branch, x) for branch, x in zip(branches, hidden, strict=True)]
    projected = concat_branches([branch.fc2(x) for branch, x in zip(branches, active, strict=True)])
    outputs = hooks.site("fc2", concat_branches(active), projected).chunk(len(branches), dim=-1)
    return [branch.drop2(y) for branch, y in zip(branches, outputs, strict=True)]


def is_differential(branch: Any) -> bool:
    """Return True if the attention is the difference of two (DiffAttention, DiffParallelScalingBlock)."""
    return hasattr(branch, "lambda_init")


def head_shape(branch: Any) -> tuple[int, int]:
    """Return how many heads the attention call gets from a branch, and the width of one; (H, d)."""
    # BEiT's attention has no `head_dim`, and EVA's may have no joint `qkv` to read the width from.
    width = getattr(branch, "head_dim", None) or branch.qkv.out_features // (3 * branch.num_heads)
    # timm counts a pair of differential heads as one, and gives the width of their queries: half of the values'.
    return (2 * branch.num_heads, 2 * width) if is_differential(branch) else (branch.num_heads, width)


def qkv_width(branch: Any) -> int:
    """Return the width of queries, keys and values side by side."""
    linears = [branch.q_proj, branch.k_proj, branch.v_proj] if branch.qkv is None else [branch.qkv]
    return sum(linear.out_features for linear in linears)


def fc1_width(branch: Any) -> int:
    """Return the width of the MLP's first layer, its gate included."""
    # SwiGLU keeps gate and value in two layers; GluMlp's fc1 holds both.
    width: int = 2 * branch.fc1_x.out_features if hasattr(branch, "fc1_x") else branch.fc1.out_features
    return width


def normalises_qk(branch: Any) -> bool:
    """Return True if a branch normalises queries and keys after its site `qkv`."""
    return not isinstance(getattr(branch, "q_norm", None), nn.Identity | None)


def split_heads(branch: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split rows [S, Q] into queries and keys, which are normed, and values; three of [S, H, d]."""
    if is_differential(branch):
        return _split_differential(branch, rows)
    heads, width = head_shape(branch)
    shared = getattr(branch, "num_kv_heads", heads)
    widths = [heads * width, shared * width, shared * width]
    q, k, v = (_split_into_heads(x, width) for x in rows.split_with_sizes(widths, dim=-1))
    if hasattr(branch, "q_norm"):
        q, k = branch.q_norm(q), branch.k_norm(k)
    if shared != heads:
        # Grouped queries, as timm's repeat_interleave: our attention kernels take as many keys as queries.
        k, v = (_repeat_heads(x, heads // shared) for x in (k, v))
    return q, k, v


def merge_heads(branch: Any, attended: Tensor) -> Tensor:
    """Put the attended heads side by side; [S, H, d] -> [S, H d], of differential attention half as wide.

    Differential attention takes the difference of every two heads (Ye et al., 2024, equation 1).
    """
    if not is_differential(branch):
        return attended.flatten(1)
    first, second = attended.view(len(attended), -1, 2, attended.shape[-1]).unbind(2)
    difference = branch.sub_norm(first - branch._compute_lambda().type_as(second) * second)
    merged: Tensor = (difference * (1 - branch.lambda_init)).flatten(1)
    return merged


def _split_differential(branch: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Two heads of half the width use the values of one. Attention kernels want queries, keys and values of one width,
    # so queries and keys are padded with zeros, which change no dot product; `branch.scale` is still of half the width.
    half = branch.head_dim
    q, k, v = rows.chunk(3, dim=-1)
    q, k = branch.q_norm(_split_into_heads(q, half)), branch.k_norm(_split_into_heads(k, half))
    return F.pad(q, (0, half)), F.pad(k, (0, half)), _repeat_heads(_split_into_heads(v, 2 * half), 2)


def _split_into_heads(x: Tensor, width: int) -> Tensor:
    """Split channels into heads of `width`; [S, H d] -> [S, H, d]."""
    return x.reshape(len(x), -1, width)


def _repeat_heads(x: Tensor, times: int) -> Tensor:
    """Repeat every head `times` times, copies next to each other; [S, H, d] -> [S, H times, d]."""
    return x.unsqueeze(2).expand(-1, -1, times, -1).flatten(1, 2)


def _project_qkv(branch: Any, h: Tensor) -> Tensor:
    if branch.qkv is None:
        return torch.cat([branch.q_proj(h), branch.k_proj(h), branch.v_proj(h)], dim=-1)
    # EVA and BEiT keep the biases apart from `qkv`: the keys' is a buffer of zeros and is not trained.
    if getattr(branch, "q_bias", None) is not None:
        return F.linear(h, branch.qkv.weight, torch.cat([branch.q_bias, branch.k_bias, branch.v_bias]))
    y: Tensor = branch.qkv(h)
    return y


def _norm_and_gate(branch: Any, attended: Tensor, h: Tensor) -> Tensor:
    """Apply the norm and the gate that some attentions have before their projection; [S, D] -> [S, D]."""
    # Not all classes have these modules, and of those that do most leave `gate` None.
    if hasattr(branch, "norm"):
        attended = branch.norm(attended)
    gate = getattr(branch, "gate", None)
    # The gate reads the input of the attention, `h`, not its result.
    return attended if gate is None else attended * gate(h).sigmoid()


def _project_fc1(branch: Any, h: Tensor) -> Tensor:
    # Gate before value, the order of GluMlp with gate_last=False, so that one activation function serves both.
    if hasattr(branch, "fc1_x"):
        return torch.cat([branch.fc1_g(h), branch.fc1_x(h)], dim=-1)
    y: Tensor = branch.fc1(h)
    return y


def _activate_hidden(branch: Any, hidden: Tensor) -> Tensor:
    """Apply activation, gate, dropout and norm to the output of the first layer."""
    if hasattr(branch, "fc1_x") or hasattr(branch, "gate_last"):
        gate, x = hidden.chunk(2, dim=-1)
        if getattr(branch, "gate_last", False):
            gate, x = x, gate
        hidden = branch.act(gate) * x
    else:
        hidden = branch.act(hidden)
    y: Tensor = branch.norm(branch.drop1(hidden))
    return y
