"""Relative position biases of timm's BEiT and relative-position ViTs, for regions of any grid."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.contracts import Bias, Grid
from vilavt_toolkit.packed.tokens import Layout, spread, to_device


def bias_parts(attention: Any, model: Any) -> list[Any]:
    """The modules whose biases an attention adds: its own, and those that the model's blocks share."""
    own = attention if getattr(attention, "relative_position_bias_table", None) is not None else None
    parts = [getattr(attention, "rel_pos", None), own]
    parts += [getattr(model, name, None) for name in ("shared_rel_pos", "rel_pos_bias")]
    return [part for part in parts if part is not None]


def bias_of(parts: list[Any], layout: Layout) -> Bias | None:
    """The sum of the modules' biases, [H, n, n] by grid; None without any."""
    if not parts:
        return None

    def bias(grid: Grid) -> Tensor:
        made = [(_of_mlp if hasattr(part, "mlp") else _of_table)(part, grid, layout) for part in parts]
        return made[0] if len(made) == 1 else torch.stack(made).sum(0)

    return bias


def _of_table(part: Any, grid: Grid, layout: Layout) -> Tensor:
    """A value per offset and head, and with a class token three more (Bao et al., 2022); [H, n, n]."""
    table = part.relative_position_bias_table
    prefix = int(getattr(part, "prefix_tokens", 1))
    if grid != tuple(part.window_size):
        table = _resized(table, tuple(part.window_size), grid, 3 * prefix, layout)
    return _gathered(table, grid, prefix, layout)


def _of_mlp(part: Any, grid: Grid, layout: Layout) -> Tensor:
    """A network's values at logarithmic offsets (Liu et al., 2022); [H, n, n], 0 for prefix tokens."""
    weight = part.mlp.fc1.weight
    scale = tuple(part.pretrained_window_size) if part.mode == "swin" else None
    key = ("log offsets", grid, scale, weight.device)
    offsets = layout.cached(
        key, lambda: torch.from_numpy(_log_offsets(grid, scale)).to(weight.device, non_blocking=True)
    )
    values = part.bias_act(part.mlp(offsets.to(weight.dtype)))
    if part.bias_gain is not None:
        values = part.bias_gain * values
    prefix = int(part.prefix_tokens)
    return F.pad(_gathered(values, grid, 0, layout), (prefix, 0, prefix, 0))


def _gathered(values: Tensor, grid: Grid, prefix: int, layout: Layout) -> Tensor:
    """A bias for every pair of tokens from the values of offsets [M, H]; [H, n, n]."""
    key = ("offsets", grid, prefix, values.device)
    index = layout.cached(key, lambda: to_device(offset_index(grid, prefix).ravel(), values.device))
    tokens = math.prod(grid) + prefix
    return spread(values, index).view(tokens, tokens, -1).permute(2, 0, 1)


def offset_index(grid: Grid, prefix: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which offset lies between two tokens, row by row of the table; [n, n].

    Behind the offsets come: from the class token, to it, and from it to itself.
    """
    height, width = grid
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    down, across = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
    index: np.ndarray[Any, np.dtype[np.int64]] = np.pad(down * (2 * width - 1) + across, ((prefix, 0), (prefix, 0)))
    if prefix:
        count = (2 * height - 1) * (2 * width - 1)
        index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index


def _log_offsets(grid: Grid, pretrained: Grid | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Offsets (down, across) on a logarithmic scale; with a grid (Swin v2) as parts of its size. [M, 2]"""
    spans, base = [1.0, 1.0], 1.0
    if pretrained is not None:
        whole = pretrained if pretrained[0] > 0 else grid
        # An axis of one token has only offset 0.
        spans, base = [max(1, size - 1) / 8 for size in whole], math.log(8)
    axes = [np.arange(1 - size, size) / span for size, span in zip(grid, spans, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = np.sign(offsets) * np.log1p(np.abs(offsets)) / base
    return logs.astype(np.float32)


def _resized(table: Tensor, old: Grid, new: Grid, extra: int, layout: Layout) -> Tensor:
    """The table for another grid: linear between old offsets, which lie the wider apart the farther they are (BEiT)."""
    values, last = table.split_with_sizes([len(table) - extra, extra])
    key = ("offset weights", old, new, table.device)
    weights = layout.cached(
        key,
        lambda: [
            torch.from_numpy(_between(a, b)).to(table.device, non_blocking=True) for a, b in zip(old, new, strict=True)
        ],
    )
    square = values.float().view(2 * old[0] - 1, 2 * old[1] - 1, -1)
    made = torch.einsum("ys,xt,sth->yxh", *weights, square).flatten(0, 1)
    return torch.cat([made.to(table.dtype), last])


@cache
def _between(old: int, new: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights of the offsets of `old` tokens in those of `new` along an axis; [2 new - 1, 2 old - 1]."""
    places = _spaced(old - 1, new - 1)
    offsets = np.arange(1 - new, new)
    columns = [np.interp(offsets, places, one) for one in np.eye(len(places))]
    return np.stack(columns, axis=1).astype(np.float32)


def _spaced(steps: int, reach: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Places of 2 `steps` + 1 old offsets, each step `ratio` times the one before, so that the last is at `reach`."""
    low, high = 1.01, 1.5
    ratio = (low + high) / 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (ratio**steps - 1) / (ratio - 1) > reach:
            high = ratio
        else:
            low = ratio
    outward = np.cumsum(ratio ** np.arange(steps))
    return np.concatenate([-outward[::-1], [0.0], outward])
