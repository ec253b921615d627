"""Packed tokens to feature maps, a batch per distinct size, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.packed.tokens import Layout, permutation, permute


def to_maps(x: Tensor, layout: Layout) -> list[Tensor]:
    """Tokens x [S, D] as maps [n, h, w, D], one batch for each distinct grid of the layout's regions."""
    of_size = _of_size(layout)
    if len(of_size) == 1:
        return [x.view(-1, *grid, x.shape[-1]) for grid in of_size]
    by_size, back = _way(layout, list(of_size), x.device)
    counts = [len(regions) * math.prod(grid) for grid, regions in of_size.items()]
    parts = permute(x, by_size, back).split_with_sizes(counts)
    return [part.view(-1, *grid, part.shape[-1]) for part, grid in zip(parts, of_size, strict=True)]


def to_tokens(maps: Sequence[Tensor], layout: Layout) -> Tensor:
    """Maps [n, h', w', D'] that were made of those of `to_maps`, in the layout's order of regions; [S', D']."""
    parts = [each.flatten(0, -2) for each in maps]
    if len(parts) == 1:
        return parts[0]
    by_size, back = _way(layout, [tuple(each.shape[1:-1]) for each in maps], parts[0].device)
    return permute(torch.cat(parts), back, by_size)


def _of_size(layout: Layout) -> dict[Grid, list[int]]:
    """The regions of every distinct grid."""

    def make() -> dict[Grid, list[int]]:
        found: dict[Grid, list[int]] = {}
        for region, size in enumerate(layout.sizes):
            found.setdefault(size, []).append(region)
        return found

    return layout.cached("regions of size", make)


def _way(layout: Layout, grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
    """What `permute` needs to put regions in the order of their sizes, which have these grids of tokens now."""

    def make() -> tuple[Tensor, Tensor]:
        counts = [0] * len(layout.sizes)
        for grid, regions in zip(grids, _of_size(layout).values(), strict=True):
            for region in regions:
                counts[region] = math.prod(grid)
        order = [region for regions in _of_size(layout).values() for region in regions]
        return permutation(counts, order, device)

    return layout.cached(("maps", tuple(grids), device), make)
