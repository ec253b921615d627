"""Turn packed tokens into feature maps, one batch per distinct grid, and back.

Stages are made of convolutions and windows, which need maps [n, h, w, D] of one size. So the regions of each distinct
grid are brought together for a stage, and back into the layout's order after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.packed.tokens import Layout, permute_rows, segment_permutation


def to_maps(x: Tensor, layout: Layout) -> list[Tensor]:
    """Unpack tokens x [S, D] into maps [n, h, w, D], one batch for each distinct grid of the layout's regions."""
    of_size = _regions_by_size(layout)
    if len(of_size) == 1:
        return [x.view(-1, *grid, x.shape[-1]) for grid in of_size]
    by_size, back = _size_permutation(layout, list(of_size), x.device)
    counts = [len(regions) * math.prod(grid) for grid, regions in of_size.items()]
    parts = permute_rows(x, by_size, back).split_with_sizes(counts)
    return [part.view(-1, *grid, part.shape[-1]) for part, grid in zip(parts, of_size, strict=True)]


def to_tokens(maps: Sequence[Tensor], layout: Layout) -> Tensor:
    """Pack maps [n, h', w', D'], made from those of `to_maps`, in the layout's order of regions; [S', D']."""
    parts = [each.flatten(0, -2) for each in maps]
    if len(parts) == 1:
        return parts[0]
    by_size, back = _size_permutation(layout, [tuple(each.shape[1:-1]) for each in maps], parts[0].device)
    return permute_rows(torch.cat(parts), back, by_size)


def _regions_by_size(layout: Layout) -> dict[Grid, list[int]]:
    """Group the regions by their grid, in the order in which the grids first occur."""

    def group_regions() -> dict[Grid, list[int]]:
        found: dict[Grid, list[int]] = {}
        for region, size in enumerate(layout.sizes):
            found.setdefault(size, []).append(region)
        return found

    return layout.get_or_make("regions of size", group_regions)


def _size_permutation(layout: Layout, grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the permutation that orders regions by their size, and its inverse; [S'], [S'].

    `grids` are the grids that the batches of maps have now: a stage may have made them smaller than the layout's.
    """

    def build_permutation() -> tuple[Tensor, Tensor]:
        # The layout's sizes tell which regions share a batch; how many rows each has follows from its present grid.
        counts = [0] * len(layout.sizes)
        for grid, regions in zip(grids, _regions_by_size(layout).values(), strict=True):
            for region in regions:
                counts[region] = math.prod(grid)
        order = [region for regions in _regions_by_size(layout).values() for region in regions]
        return segment_permutation(counts, order, device)

    return layout.get_or_make(("maps", tuple(grids), device), build_permutation)
