"""Relative position biases of timm's BEiT and relative-position ViTs, for regions of any grid.

timm computes a bias for one grid. Here it is a function of the grid, since the regions of one call have many; `attend`
calls it once for each of them. Letters beside the legend's: n tokens of a region, M distinct offsets between two.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_toolkit.contracts import Bias, Grid
from vilavt_toolkit.packed.tokens import Layout, gather_rows, to_device


def find_bias_modules(attention: Any, model: Any) -> list[Any]:
    """Return the modules whose biases an attention adds: its own, and those that all blocks of the model share."""
    # BEiT's attention holds its table itself; relative-position ViTs have a module `rel_pos` inside. Shared ones hang
    # on the model: `shared_rel_pos` of relative-position ViTs, `rel_pos_bias` of BEiT.
    own = attention if getattr(attention, "relative_position_bias_table", None) is not None else None
    modules = [getattr(attention, "rel_pos", None), own]
    modules += [getattr(model, name, None) for name in ("shared_rel_pos", "rel_pos_bias")]
    return [module for module in modules if module is not None]


def make_bias(modules: list[Any], layout: Layout) -> Bias | None:
    """Return a function from a grid to the sum of the modules' biases [H, n, n]; None if there are no modules."""
    if not modules:
        return None

    # A function, so that biases are computed only for the grids that occur, and with a gradient to their tables.
    def sum_biases(grid: Grid) -> Tensor:
        biases = []
        for module in modules:
            compute = _network_bias if hasattr(module, "mlp") else _table_bias
            biases.append(compute(module, grid, layout))
        return biases[0] if len(biases) == 1 else torch.stack(biases).sum(0)

    return sum_biases


def _table_bias(module: Any, grid: Grid, layout: Layout) -> Tensor:
    """Look up a table with a row per offset, and three more with a class token (Bao et al., 2022); [H, n, n]."""
    table = module.relative_position_bias_table
    # BEiT's own modules have no such attribute, and always a class token.
    prefix = int(getattr(module, "prefix_tokens", 1))
    if grid != tuple(module.window_size):
        table = _resize_table(table, tuple(module.window_size), grid, 3 * prefix, layout)
    return _gather_pairs(table, grid, prefix, layout)


def _network_bias(module: Any, grid: Grid, layout: Layout) -> Tensor:
    """Ask a network for a value at each logarithmic offset (Liu et al., 2022); [H, n, n], 0 for prefix tokens."""
    weight = module.mlp.fc1.weight
    # Mode "cr" takes offsets in tokens, mode "swin" in modules of the grid that the model was pretrained on.
    scale = tuple(module.pretrained_window_size) if module.mode == "swin" else None
    key = ("log offsets", grid, scale, weight.device)
    offsets = layout.get_or_make(
        key, lambda: torch.from_numpy(_log_offsets(grid, scale)).to(weight.device, non_blocking=True)
    )
    values = module.bias_act(module.mlp(offsets.to(weight.dtype)))
    if module.bias_gain is not None:
        values = module.bias_gain * values
    prefix = int(module.prefix_tokens)
    return F.pad(_gather_pairs(values, grid, 0, layout), (prefix, 0, prefix, 0))


def _gather_pairs(values: Tensor, grid: Grid, prefix: int, layout: Layout) -> Tensor:
    """Spread the values of offsets [M, H] over all pairs of tokens; [H, n, n]."""
    key = ("offsets", grid, prefix, values.device)
    index = layout.get_or_make(key, lambda: to_device(offset_index(grid, prefix).ravel(), values.device))
    tokens = math.prod(grid) + prefix
    return gather_rows(values, index).view(tokens, tokens, -1).permute(2, 0, 1)


def offset_index(grid: Grid, prefix: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the row of the table for every pair of tokens; [n, n].

    The rows after the offsets are: from the class token, to it, and from it to itself.
    """
    height, width = grid
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    # Offsets from -(h - 1) to h - 1 and -(w - 1) to w - 1, shifted to start at 0, index the table row after row.
    down, across = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
    index: np.ndarray[Any, np.dtype[np.int64]] = np.pad(down * (2 * width - 1) + across, ((prefix, 0), (prefix, 0)))
    if prefix:
        count = (2 * height - 1) * (2 * width - 1)
        index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index


def _log_offsets(grid: Grid, pretrained: Grid | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return all offsets (down, across) of a grid on a logarithmic scale; [M, 2].

    With `pretrained`, the grid of pretraining (0 for `grid` itself), they are first divided by its size, as in Swin v2.
    """
    spans, base = [1.0, 1.0], 1.0
    if pretrained is not None:
        whole = pretrained if pretrained[0] > 0 else grid
        # Swin v2 scales offsets to [-8, 8] and takes log2(1 + |x|) / log2(8). An axis of one token has only offset 0,
        # and its span must not be 0.
        spans, base = [max(1, size - 1) / 8 for size in whole], math.log(8)
    axes = [np.arange(1 - size, size) / span for size, span in zip(grid, spans, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = np.sign(offsets) * np.log1p(np.abs(offsets)) / base
    return logs.astype(np.float32)


def _resize_table(table: Tensor, old: Grid, new: Grid, extra: int, layout: Layout) -> Tensor:
    """Resize the table to another grid: linear between old offsets, which lie wider apart far out (BEiT's code)."""
    # The last rows are of the class token, and have no place on the grid.
    values, last = table.split_with_sizes([len(table) - extra, extra])
    key = ("offset weights", old, new, table.device)
    weights = layout.get_or_make(
        key,
        lambda: [
            torch.from_numpy(_interpolation_weights(a, b)).to(table.device, non_blocking=True)
            for a, b in zip(old, new, strict=True)
        ],
    )
    # Two matrix products where timm loops over heads with scipy, so that the table gets its gradient through them.
    square = values.float().view(2 * old[0] - 1, 2 * old[1] - 1, -1)
    resized = torch.einsum("ys,xt,sth->yxh", *weights, square).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), last])


@cache
def _interpolation_weights(old: int, new: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the weights of the offsets of `old` tokens in those of `new` along an axis; [2 new - 1, 2 old - 1]."""
    places = _spaced_offsets(old - 1, new - 1)
    offsets = np.arange(1 - new, new)
    # Interpolating the unit vectors gives the matrix of the interpolation, column by column.
    columns = [np.interp(offsets, places, one) for one in np.eye(len(places))]
    return np.stack(columns, axis=1).astype(np.float32)


def _spaced_offsets(steps: int, reach: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Place 2 `steps` + 1 old offsets, each step `ratio` times the one before, so that the last is at `reach`."""
    # timm's and BEiT's bounds and tolerance, bisected as they do, so that resized tables agree with theirs.
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
