"""Encoders: turn views into packed vision tokens, block by block, and tokens into features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component, Grid
from vilavt_toolkit.contracts.source import Crop
from vilavt_toolkit.packed.tokens import Layout, Tokens


@dataclass(frozen=True)
class View:
    """A crop made ready for one encoder."""

    data: Tensor
    """The encoder's input, unnormalised (images: uint8 [3, h, w])."""
    size: Grid
    """Tokens along each axis as `embed` makes them, prefix tokens not counted."""


@dataclass(frozen=True)
class BlockSpec:
    """What a modulator may rely on in one block."""

    width: int
    """Width of the tokens behind the block."""
    sites: Mapping[str, int]
    """Width of the named part's output, `y`, at every site the block offers."""
    inputs: Mapping[str, int] = field(default_factory=dict)
    """Width of the part's input, `x`, where it is not the block's width."""
    heads: int = 0
    head_dim: int = 0
    context_refused: str = ""
    """Why the block's attention takes no context keys and no other regions; empty where it does."""

    def input_width(self, site: str) -> int:
        """Width of what goes into the part at `site`."""
        return self.inputs.get(site, self.width)


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder declares before a weight is loaded."""

    modality: str
    blocks: tuple[BlockSpec, ...]
    out_width: int
    positions: Literal["rotary", "absolute", "relative", "none"]
    full_attention: tuple[int, ...] = ()
    """Blocks that attend over a whole region; what integration `sparse` selects."""
    channels: int | None = None
    """What the source's `channels` must be; None where it is not asked for."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


class At(Protocol):
    """Called by a block after each named part: `x` went in, `y` came out, the result goes on. [S, D_in], [S, D_out].

    At site `block` of a block that changes the grid of tokens `x` is `y`, since their rows would not go together.
    """

    def __call__(self, site: str, x: Tensor, y: Tensor) -> Tensor: ...


Bias = Callable[[Grid], Tensor]
"""What is added to the attention logits within a region of a given grid; [H, n, n], n tokens with prefix tokens."""


class Attend(Protocol):
    """Called by a block in place of attention, on packed q, k, v [S, H, d]; returns [S, H, d].

    q and k come after their norms and before rotation: it rotates them (`Encoder.rotate`) where tokens have positions.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None
    ) -> Tensor: ...


class Encoder(nn.Module, Component, ABC):
    """Views in, packed features out, block by block so that modulators can step between. `__init__(config)`."""

    spec: EncoderSpec
    same_rotation: bool = True
    """Whether all blocks rotate alike, so that cosines and sines are computed once per call."""
    compile_refused: str = ""
    """Why its blocks cannot be compiled; empty where they can."""

    @abstractmethod
    def prepare(self, crop: Crop) -> View:
        """Make a crop ready (resize within the pixel budget); runs in workers, touches no weight."""

    def extent(self, view: View) -> Grid:
        """Units along each axis of a view, x first, as a dialogue may write boxes in: pixels; () where it has none."""
        return ()

    @abstractmethod
    def tokens(self, size: Grid) -> int:
        """Number of tokens of a region while their grid is `size`, prefix tokens included."""

    def block_grid(self, index: int, size: Grid) -> Grid:
        """Return the grid of tokens behind block `index` of a region whose view has grid `size`.

        Where a block changes it, `at`, `attend` and modulators work on the tokens behind the change, and tokens have no
        positions.
        """
        return size

    def grid(self, size: Grid) -> Grid:
        """Return the grid of features that `readout` gives for a region of grid `size`."""
        return size

    def count(self, size: Grid) -> int:
        """Number of features that `readout` gives for a region of grid `size`."""
        return math.prod(self.grid(size))

    @abstractmethod
    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Turn views, already in the layout's order, into packed tokens x [S, D]. May loop over distinct sizes."""

    def partitions(self, sizes: Sequence[Grid]) -> dict[str, Sequence[int]]:
        """Segment lengths of the encoder's own partitions of the packed axis (window, temporal slice), by name."""
        return {}

    def partition(self, index: int) -> str:
        """Name the partition that block `index` attends within."""
        return "region"

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """What `rotate` needs at positions [N, P] in block `index`; nothing may turn at position 0."""
        raise NotImplementedError(f"{type(self).__name__} gives positions and no rotation.")

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d] by what `rotation` made of their positions."""
        raise NotImplementedError(f"{type(self).__name__} gives positions and no rotation.")

    def room(self, size: Grid) -> int:
        """Positions that a region takes on every axis when a group's regions stand one after another (span `group`).

        0: positions say nothing across regions, and every region keeps its own.
        """
        return 0

    @abstractmethod
    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run block `index`; x [S, D] -> [S, D], or to as many tokens as `block_grid` says."""

    @abstractmethod
    def readout(self, tokens: Tokens) -> Tensor:
        """Final norm and merging, without prefix tokens, in the layout's order; [S, D] -> [F, D_out]."""

    def to_grids(self, values: Tensor, layout: Layout) -> list[Tensor]:
        """Values of all tokens [S, C] on the grid of each region, prefix tokens left out; [*size, C] each.

        In packed order. To be overridden where a region's tokens do not stand row after row behind its prefix tokens.
        """
        parts = values.split_with_sizes(list(layout.partitions["region"]))
        return [
            part[len(part) - math.prod(size) :].view(*size, -1) for part, size in zip(parts, layout.sizes, strict=True)
        ]

    def check_weights(self) -> None:
        """Hold that the files of weights that the settings name are there, and read no tensor; raises InputError."""

    def load_weights(self) -> None:
        """Load pretrained weights where the settings name some; raises InputError."""
