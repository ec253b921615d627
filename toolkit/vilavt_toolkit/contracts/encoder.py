"""Encoders: views to packed vision tokens, block by block, and tokens to features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.source import Crop
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Grid, Layout, Tokens


@dataclass(frozen=True)
class View:
    """Holds a crop that is ready for one encoder."""

    data: Tensor
    """The encoder's input, unnormalised (images: uint8 [3, h, w])."""
    size: Grid
    """Tokens along each axis as `embed` makes them, without prefix tokens."""


@dataclass(frozen=True)
class BlockSpec:
    """Holds the facts about one block that modulators rely on."""

    width: int
    """Width of the tokens after the block."""
    sites: Mapping[str, int]
    """Width of the named part's output, `y`, at every site that the block offers."""
    inputs: Mapping[str, int] = field(default_factory=dict)
    """Width of the part's input, `x`, at the sites where it is not the block's width."""
    heads: int = 0
    """Number of heads H of the q, k and v that the block hands to `attend`; 0: it has no attention.

    A modulator that adds context keys makes them [K, H, head_dim]. Nothing follows for site `qkv`: its width is
    3 x heads x head_dim in a plain block only. Differential attention joins pairs of heads, and a block with two
    branches has the q, k and v of both at one site.
    """
    head_dim: int = 0
    """Width d of one head of that q, k and v; 0: the block has no attention."""
    no_context_reason: str = ""
    """Reason why its attention takes neither context keys nor other regions; empty if it takes both."""
    norm_follows: frozenset[str] = frozenset()
    """Sites of `qkv`, `proj`, `fc2` whose y goes straight into a norm, so that scaling it there has no effect.

    For `qkv` it is the norm of queries and keys; values have none. A modulator refuses such a site in
    `unsupported_reason`, or adapts to it.
    """

    def input_width(self, site: str) -> int:
        """Return the width of the input of the part at `site`."""
        return self.inputs.get(site, self.width)


Positions = Literal["rotary", "absolute", "relative", "none"]
"""The ways in which an encoder knows where a token lies."""


@dataclass(frozen=True)
class EncoderSpec:
    """Holds the facts that an encoder declares before a weight is loaded. Raises BadConfig for unknown positions."""

    modality: str
    """The modality of the crops that it takes, `image` for images."""
    blocks: tuple[BlockSpec, ...]
    out_width: int
    """Width of the features that `readout` gives."""
    positions: Positions
    full_attention: tuple[int, ...] = ()
    """Indices of the blocks that attend over a whole region; integration `sparse` selects them."""
    channels: int | None = None
    """The number of `Source.channels` that it needs; None: any."""

    def __post_init__(self) -> None:
        # Nothing computes with this field, so a misspelt value would go unnoticed.
        if self.positions not in get_args(Positions):
            allowed = ", ".join(get_args(Positions))
            raise BadConfig(f"`EncoderSpec.positions` is {self.positions!r}. Set it to one of: {allowed}.")

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)


class SiteHook(Protocol):
    """Called by a block after each named part: `x` went in, `y` came out. The block goes on with the result.

    x [S, D_in], y [S, D_out] -> [S, D_out]. At site `block` of a block that changes the grid of tokens, `x` is `y`,
    since the rows before and after the block do not correspond.
    """

    def __call__(self, site: str, x: Tensor, y: Tensor) -> Tensor: ...


Bias = Callable[[Grid], Tensor]
"""Returns what is added to the attention logits within a region of a grid; [H, n, n], n with prefix tokens."""


class Attend(Protocol):
    """Called by a block in place of attention, on packed q, k, v [S, H, d]; returns [S, H, d].

    q and k come after their norms and before RoPE: `attend` rotates them (`Encoder.rotate`) if tokens have positions.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None
    ) -> Tensor: ...


class Encoder(nn.Module, Component, ABC):
    """Turns views into packed features, block by block, so that modulators can act in between. `__init__(config)`."""

    spec: EncoderSpec
    has_shared_rotation: bool = True
    """True if every block uses the same RoPE, so that its table of cosines and sines is computed once per call."""
    no_compile_reason: str = ""
    """Reason why its blocks cannot be compiled; empty if they can."""

    @abstractmethod
    def prepare(self, crop: Crop) -> View:
        """Make a crop ready: resize it within the encoder's pixel budget and within `Crop.max_pixels`.

        Runs in data workers, so it touches no weight. Raises InputError for a crop that cannot become a view.
        """

    def extent(self, view: View) -> Grid:
        """Return the units along each axis of a view, x first: width and height in pixels for images.

        A dialogue that writes boxes in pixels of the view (`vilavt`) needs it. () means that views have no units, and
        such a dialogue refuses the encoder.
        """
        return ()

    @abstractmethod
    def token_count(self, size: Grid) -> int:
        """Return the number of tokens of a region while their grid is `size`, prefix tokens included."""

    def block_grid(self, index: int, size: Grid) -> Grid:
        """Return the grid of tokens after block `index`, of a region whose view has grid `size`.

        If a block changes the grid, then hooks, `attend` and modulators work on the tokens after the change, and
        tokens have no positions.
        """
        return size

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of the features that `readout` gives for a region of grid `size`."""
        return size

    def feature_count(self, size: Grid) -> int:
        """Return the number of features that `readout` gives for a region of grid `size`."""
        return math.prod(self.feature_grid(size))

    @abstractmethod
    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Turn views, already in the layout's order, into packed tokens x [S, D]. May loop over distinct sizes."""

    def partitions(self, sizes: Sequence[Grid]) -> dict[str, Sequence[int]]:
        """Return the segment lengths of the encoder's own partitions of the packed axis, by name.

        Examples are windows and temporal slices. Regions come in packed order.
        """
        return {}

    def block_partition(self, index: int) -> str:
        """Return the name of the partition within which block `index` attends."""
        return "region"

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Return the RoPE table for `rotate` at positions [N, P] in block `index`; position 0 rotates nothing."""
        raise NotImplementedError(f"{type(self).__name__} has positions but no `rotation`. Override it.")

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d] by the table that `rotation` made of their positions."""
        raise NotImplementedError(f"{type(self).__name__} has positions but no `rotate`. Override it.")

    def position_stride(self, size: Grid) -> int:
        """Return how far to shift the positions of the next region if a group's regions stand in sequence.

        A modulator of span `group` lets regions attend to each other, one after another on every axis. 0: positions
        mean nothing across regions, and every region keeps its own.
        """
        return 0

    # One method per block, not one for the whole encoder: modulators act within, and each block can be checkpointed
    # and compiled alone.
    @abstractmethod
    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run block `index`; x [S, D] -> [S, D], or to as many tokens as `block_grid` says."""

    @abstractmethod
    def readout(self, tokens: Tokens) -> Tensor:
        """Apply the final norm and merging, and drop prefix tokens; x [S, D] -> [F, D_out] in the layout's order."""

    def to_grids(self, values: Tensor, layout: Layout) -> list[Tensor]:
        """Return the values of all tokens [S, C] on the grid of each region, without prefix tokens; [*size, C] each.

        In packed order. Override it if a region's tokens are not its prefix tokens and then its patches, row after row.
        """
        grids = []
        for part, size in zip(values.split_with_sizes(list(layout.partitions["region"])), layout.sizes, strict=True):
            # Prefix tokens, where there are any, come first.
            grids.append(part[len(part) - math.prod(size) :].view(*size, -1))
        return grids

    # Apart from `load_weights`, so that `vilavt check` finds a missing file in seconds.
    def check_weights(self) -> None:
        """Check that the weight files named by the settings exist, without reading a tensor; raises InputError."""

    def load_weights(self) -> None:
        """Load the pretrained weights that the settings name, if any; raises InputError."""
