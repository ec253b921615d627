"""Projectors: features from the encoder's width to the language model's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.packed.tokens import Grid


class Projector(nn.Module, Component, ABC):
    """Maps features to the width of the language model. `__init__(config, in_width, out_width)`."""

    def output_grid(self, size: Grid) -> Grid:
        """Return the grid of projected features of a region whose features have grid `size`."""
        return size

    @abstractmethod
    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Project packed features of regions with grids `sizes`; [F_in, D_in] -> [F, D_out]."""
