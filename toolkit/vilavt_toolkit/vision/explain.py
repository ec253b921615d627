"""Explanations: how much the tokens of a region attend to the words of its inquiry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Encoder, Grid
from vilavt_toolkit.packed.tokens import Layout


@dataclass(frozen=True)
class Explanation:
    """Holds the attention from one region to the words of its inquiry."""

    words: tuple[str, ...]
    """Text of each of the T inquiry tokens."""
    weights: Tensor
    """[T, *grid] on the region's token grid, on the CPU: how much a place attends to a word, in [0, 1].

    The weights of a place sum to 1 over the words if tokens attend to the inquiry alone, and to less if they also
    attend to each other.
    """

    crop: Any = None
    """Data of the crop, uint8 [h, w, 3] for images; None if views were explained."""

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw a heat map per word, and their mean, over the crop of an image; raises InputError."""
        from vilavt_toolkit.vision.heat_map import draw_heat_map

        draw_heat_map(self, path)


def build_explanations(
    encoder: Encoder, layout: Layout, words: Sequence[Sequence[str]], attention_log: Sequence[tuple[Layout, Tensor]]
) -> list[Explanation]:
    """Return the explanations of all regions in the caller's order.

    `layout` is that of the views. `attention_log` holds the weights [S, T] of every attention with its own layout. If
    that layout is coarser, each token stands for all the places that it was merged from.
    """
    by_layout: dict[int, list[tuple[Layout, Tensor]]] = {}
    for entry in attention_log:
        by_layout.setdefault(id(entry[0]), []).append(entry)
    # Weights of one layout are summed before they are stretched, which is cheaper than to stretch each of them.
    sums: list[list[Tensor]] = []
    for entries in by_layout.values():
        share = torch.stack([weights.float() for _, weights in entries]).sum(0) / len(attention_log)
        grids = encoder.to_grids(share, entries[0][0])
        sums.append([_stretch_grid(values, size) for values, size in zip(grids, layout.sizes, strict=True)])
    # Packed order is by group; people get the order in which they gave the regions.
    found: dict[int, Explanation] = {}
    for region, group, parts in zip(layout.order, layout.groups, zip(*sums, strict=True), strict=True):
        weights = torch.stack(parts).sum(0).movedim(-1, 0)
        # Inquiries of a call are padded to the longest; this group's own words come first.
        found[region] = Explanation(tuple(words[group]), weights[: len(words[group])].cpu())
    return [found[region] for region in sorted(found)]


def _stretch_grid(values: Tensor, size: Grid) -> Tensor:
    """Repeat values on a coarse grid [*coarse, T] over the cells of a finer grid; [*size, T]."""
    for axis, side in enumerate(size):
        old = values.shape[axis]
        if old != side:
            values = values.index_select(axis, torch.arange(side, device=values.device) * old // side)
    return values
