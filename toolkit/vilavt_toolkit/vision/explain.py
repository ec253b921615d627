"""Which words of the inquiry the tokens of a region attend to."""

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
    """The attention from one region to the words of its inquiry."""

    words: tuple[str, ...]
    """The text of each of the T tokens."""
    weights: Tensor
    """[T, *grid] on the region's token grid, on the CPU: how much a place attends to a word, in [0, 1].

    Over the words they sum to 1 where tokens attend to the inquiry alone, and to less where they also attend to
    each other.
    """

    crop: Any = None
    """What was cut out of the source, uint8 [h, w, 3] for images; None where views were explained."""

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw a heat map per word, and their mean, over the crop of an image; raises InputError."""
        from vilavt_toolkit.vision.heat_map import draw_heat

        draw_heat(self, path)


def explanations(
    encoder: Encoder, layout: Layout, words: Sequence[Sequence[str]], seen: Sequence[tuple[Layout, Tensor]]
) -> list[Explanation]:
    """Explanations of all regions in the caller's order, from the weights [S, T] that attentions have seen.

    `layout` is that of the views; where an attention has seen fewer tokens, each stands for the places it was made of.
    """
    of_layout: dict[int, list[tuple[Layout, Tensor]]] = {}
    for each in seen:
        of_layout.setdefault(id(each[0]), []).append(each)
    means = []
    for pairs in of_layout.values():
        share = torch.stack([weights.float() for _, weights in pairs]).sum(0) / len(seen)
        grids = zip(encoder.to_grids(share, pairs[0][0]), layout.sizes, strict=True)
        means.append([_stretched(values, size) for values, size in grids])
    found: list[Explanation | None] = [None] * len(layout.order)
    for region, group, parts in zip(layout.order, layout.groups, zip(*means, strict=True), strict=True):
        grid = torch.stack(parts).sum(0)
        found[region] = Explanation(tuple(words[group]), grid.movedim(-1, 0)[: len(words[group])].cpu())
    return [explanation for explanation in found if explanation is not None]


def _stretched(values: Tensor, size: Grid) -> Tensor:
    """Values on a grid [*coarse, T], each repeated over the cells of a finer one it covers; [*size, T]."""
    for axis, side in enumerate(size):
        old = values.shape[axis]
        if old != side:
            values = values.index_select(axis, torch.arange(side, device=values.device) * old // side)
    return values
