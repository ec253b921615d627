"""The contracts: what each kind of component is, and the one legend of dimension letters.

Legend: B dialogues, G inquiry groups, R regions, S packed vision tokens, D width, H heads, T inquiry tokens,
L text length, P position axes; K context keys, F features handed to the language model, V vocabulary.

Words: a *source* is an original (image file, video, cloud); a *region* names a source and a box of it; a *crop* is what
is cut out; a *view* is a crop made ready for one encoder. An *inquiry group* is what is encoded together under one
inquiry. A component is one file, one class, one frozen dataclass of settings; it is built from its settings and what
its kind's ``__init__`` below is given. Building one reads at most a configuration or a tokenizer, never a weight:
`load_weights` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vilavt_toolkit.registry import setting
from vilavt_toolkit.vision.attention import attend_inquiry, inquiry_weights
from vilavt_toolkit.vision.tokens import Layout, Tokens, spread

if TYPE_CHECKING:
    from PIL.Image import Image

    from vilavt_toolkit.dialogue.trajectory import Trajectory
    from vilavt_toolkit.model import VisualChatModel
    from vilavt_toolkit.schema import ModelSection

Box = tuple[float, ...]
"""A part of a source in the source's own coordinates; only its source looks inside."""

Grid = tuple[int, ...]
"""Tokens along each axis of a region, (h, w) for images."""


class Component:
    """What every component has: settings of a small instance of itself, which put it under the contract tests."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Any:
        """Return settings that build a small instance in milliseconds, with nothing downloaded."""

    @classmethod
    def variants(cls) -> Mapping[str, Any]:
        """Return settings of further small instances to test, by name: one for each kind of inside it can have."""
        return {}


# --- Sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """What was cut out of a source; `data` is for the encoder of the same modality (images: uint8 [h, w, 3])."""

    data: Any
    modality: str
    overview: bool
    """True for a first view of the source, False for a zoom: their budgets differ."""
    share: tuple[float, ...] = ()
    """What part of its source it is along each axis, x first; empty where it was cut out by itself."""
    scale: float = 0.0
    """Units of the view it was named in per unit of its source, along x; 0 where it was named in none."""
    among: int = 1
    """How many first views are shown together with it, itself counted."""
    max_pixels: int | None = None
    """Most pixels of its view, beside what the encoder's own budget says; None: that alone."""


class Source(Component, ABC):
    """An original that regions are cut from. Boxes compose: every box is in coordinates of the original."""

    modality: ClassVar[str]
    box_key: ClassVar[str]
    """The key of the box in a tool call, `bbox_2d` for images."""
    box_help: ClassVar[tuple[str, str]] = (
        '"bbox_2d": [x1, y1, x2, y2]',
        "boxes are in {steps} steps from its left and top edge.",
    )
    """How a system prompt shows the box of a tool call, and what it says of it, `{steps}` to be filled in."""
    suffix: ClassVar[str] = ".png"
    """The suffix of the files that `save` writes."""

    @classmethod
    def example(cls) -> Any:
        """Return something in memory that `open` takes, for the contract tests; any box of it of a half can be cut."""
        return None

    @classmethod
    def channels(cls, config: Any) -> int | None:
        """Return how many numbers a crop has for each of its elements, coordinates included; None where it varies."""
        return None

    @classmethod
    @abstractmethod
    def open(cls, original: Any, config: Any) -> Source:
        """Open a file (path) or wrap data in memory; raises InputError naming the file and what to do."""

    @property
    def name(self) -> str:
        """What errors call it: the path of its file, or a word for what is in memory."""
        return f"the {self.modality} in memory"

    @property
    @abstractmethod
    def extent(self) -> Box:
        """The box of the whole source; of one whose boxes cannot hold it whole (a video), the first overview's."""

    def overviews(self) -> Sequence[Box]:
        """The boxes of its first views, in the order in which they are shown, one or more: the whole, once."""
        return (self.extent,)

    def share(self, box: Box) -> tuple[float, ...]:
        """What part of the source a box is along each axis, x first. A first number with no second one is no axis."""
        (lows, highs), (starts, ends) = _edges(box), _edges(self.extent)
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        return tuple(
            (high - start) / length - (low - start) / length if length else 1.0
            for low, high, start, length in zip(lows, highs, starts, lengths, strict=True)
        )

    def scale(self, box: Box, units: float) -> float:
        """How many units of a view of `box`, `units` wide, stand for one unit of the source along x."""
        (start, *_), (end, *_) = _edges(self.extent)
        return units / ((end - start) * self.share(box)[0])

    def label(self, box: Box) -> str:
        """What is said of a region beside its index where it is announced: its time in a video; empty for nothing."""
        return ""

    @abstractmethod
    def read_box(self, value: Mapping[str, Any], within: Box, steps: int | tuple[int, ...]) -> Box:
        """Read a tool call's box, the keys beside `index`; raises BoxError in words for the model.

        The region `within` is `steps` units long on each side, or along each axis.
        """

    @abstractmethod
    def write_box(self, box: Box, within: Box, steps: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as a tool call's keys, relative to `within`; the inverse of `read_box` up to rounding."""

    def box_schema(
        self, within: Box, steps: int | tuple[int, ...], begun: tuple[int, ...] = ()
    ) -> Mapping[str, Any] | None:
        """JSON schema of a tool call's keys beside `index`, for a box whose first numbers are `begun`.

        Its properties come in the order of `write_box`, the box first: an array whose `prefixItems` are whole numbers,
        `begun` as constants, the others with a `minimum` and a `maximum`. Those of the next number are exact: whatever
        lies between can be gone on with to a box that `read_box` takes and whose crop can be made a view. Further
        properties are numbers. Raises BoxError where nothing can be gone on with; None: it cannot be said.
        """
        return None

    @abstractmethod
    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut `box` from the original, never from an earlier crop."""

    @abstractmethod
    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw the numbered boxes on a picture of the source whose longer side is `size` pixels; None: its own."""

    def picture(self, data: Any, size: int) -> Image:
        """Draw the `data` of a crop of this source, on a picture whose longer side is `size` pixels.

        What is no image, uint8 [h, w, 3], needs its own.
        """
        from vilavt_toolkit.report.pictures import enlarged

        return enlarged(data, size)

    def save(self, path: Path) -> None:
        """Write the original into a file that `open` takes, of the suffix that is this kind's."""
        self.draw([]).save(path, format="PNG")


@dataclass(frozen=True)
class Region:
    """A box of a source; without a box, an overview of it."""

    source: Source
    box: Box | None = None
    overview: int = 0
    """Without a box: which of the source's overviews."""
    scale: float = 0.0
    """Units of the view it was named in per unit of its source, along x; 0 for a first view."""
    among: int = 1
    """How many first views are shown together with it, itself counted."""
    max_pixels: int | None = None
    """Most pixels of its view, beside what the encoder's own budget says; None: that alone."""

    @property
    def extent(self) -> Box:
        """The box it stands for, in the source's coordinates."""
        return self.source.overviews()[self.overview] if self.box is None else self.box

    def crop(self) -> Crop:
        """Cut the region out of its source."""
        crop = self.source.crop(self.extent, overview=self.box is None)
        share, most = self.source.share(self.extent), self.max_pixels
        return replace(crop, share=share, scale=self.scale, among=self.among, max_pixels=most)


def _edges(box: Box) -> tuple[Box, Box]:
    """The lower edges of a box along its axes, and the upper ones."""
    sides = box[len(box) % 2 :]
    return sides[: len(sides) // 2], sides[len(sides) // 2 :]


# --- Vision --------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Inquiry:
    """The inquiries of one packed call, as modulators see them."""

    features: Tensor
    """[T, D] token features of all inquiries, group after group."""
    pooled: Tensor
    """[G, D], zero for an empty inquiry."""
    lengths: tuple[int, ...]
    """Tokens of every group's inquiry, 0 for an empty one; known on the CPU."""
    layout: Layout
    """The vision tokens' layout, in a block the one behind it; its lengths are known on the CPU."""
    seen: list[tuple[Layout, Tensor]] | None = None
    """Where given, attention weights on the inquiries' tokens are put here, [S, longest inquiry] per attention."""

    @property
    def group_of(self) -> Tensor:
        """The group of every vision token; [S]."""
        return self.layout.group_of(self.pooled.device)

    def to_tokens(self, values: Tensor) -> Tensor:
        """Give every vision token its group's row; [G, ...] -> [S, ...], with a gradient that is deterministic."""
        return spread(values, self.group_of)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attention of vision tokens q [S, H, d] to their group's inquiry tokens k, v [T, H, d]; [S, H, d].

        Zero for tokens whose inquiry is empty.
        """
        if self.seen is not None:
            self.seen.append((self.layout, inquiry_weights(q, k, self.layout, self.lengths, scale)))
        return attend_inquiry(q, k, v, self.layout, self.lengths, scale)


@dataclass(frozen=True)
class Context:
    """Keys and values that a modulator adds to attention."""

    k: Tensor
    """[K, H, d] after key norm, before rotation; one per inquiry token, in the inquiries' order.

    Where `Encoder.room` lets regions stand one after another, the inquiry stands behind the last of its group.
    """
    v: Tensor
    """[K, H, d]"""


class Modulator(nn.Module, Component, ABC):
    """Changes one block under the inquiry. One instance per modulated block; `__init__(config, block, inquiry_width)`.

    The engine restores the unmodulated values of tokens whose inquiry is empty; a modulator need not.
    """

    sites: frozenset[str] = frozenset()
    """Where `modulate` is called."""
    span: Literal["region", "group"] = "region"
    """What a token attends over in this block; `group`: all regions of its inquiry group."""

    @classmethod
    def refusal(cls, config: Any, block: BlockSpec) -> str:
        """Say why this modulator cannot work on `block`, or return an empty string."""
        return ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Change what the part at `site` made of x: y [S, D_site] -> [S, D_site]. At initialisation: y itself."""
        return y

    def context(self, inquiry: Inquiry) -> Context | None:
        """Keys and values for the block's attention, or None."""
        return None


class InquiryEncoder(nn.Module, Component, ABC):
    """Text to packed features. `__init__(config, language_model)`."""

    width: int

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of an inquiry, which then live in the trajectory; [] for an empty text."""

    @abstractmethod
    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of every token of an inquiry, for people to read."""

    @abstractmethod
    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encode the inquiries of G groups: features of all tokens [T, D], pooled [G, D] (zero where empty)."""

    def check_weights(self) -> None:
        """Hold that the files of weights that the settings name are there, and read no tensor; raises InputError."""

    def load_weights(self) -> None:
        """Load pretrained weights where the settings name some; raises InputError."""

    def save_assets(self, folder: Path) -> None:
        """Write what building it again needs beside its settings into `folder`, which is there: nothing, usually."""

    @classmethod
    def from_saved(cls, config: Any, language_model: LanguageModel, folder: Path) -> InquiryEncoder:
        """Build it from what `save_assets` wrote, weights still to come; `folder` may be missing. Raises InputError."""
        make: Any = cls
        made: InquiryEncoder = make(config, language_model)
        return made


class Projector(nn.Module, Component, ABC):
    """Encoder width to language width. `__init__(config, in_width, out_width)`."""

    def grid(self, size: Grid) -> Grid:
        """Return the grid of features that come out for a region whose features have grid `size`."""
        return size

    @abstractmethod
    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Project packed features of regions with grids `sizes`; [F_in, D_in] -> [F, D_out]."""


# --- Language ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """The text around turns: read off the model's chat template, or plain where it has none."""

    first: str
    """Before the first user turn's content, without a system prompt."""
    system: tuple[str, str] | None
    """Before a system prompt, and between it and the first user turn's content; None: the template refuses one."""
    reply: str
    """Between a user turn's content and the assistant's; the assistant's ends with `end_of_turn`."""
    following: str
    """Between the end-of-turn token and the next user turn's content; never the model's own."""


class Tokenizer(Protocol):
    """Text to ids and back, without special tokens added on the way."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class SpelledTokenizer(Tokenizer, Protocol):
    """A tokenizer that says how its tokens are spelled, as decoding under a grammar must know."""

    def spellings(self) -> Sequence[bytes]:
        """The bytes of every token as `decode` writes it behind others; empty for marks, and for ids without one."""
        ...


class CacheView(Protocol):
    """What one forward sees of a cache, and adds to it."""

    @property
    def mask(self) -> Tensor:
        """[B, 1, L, C] to be added to attention logits: 0 where a new column sees a kept one, -inf elsewhere."""
        ...

    @property
    def kept(self) -> int | None:
        """Columns before the new ones, if all rows hold as many and none is padding: what is causal needs no mask."""
        ...

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, H, L, d] of the new columns, rotated; return those of all columns, [B, H, C, d]."""
        ...


class LanguageModel(nn.Module, Component, ABC):
    """Embeddings in, logits out, with a cache the chat keeps. Owns its tokenizer. `__init__(config)`."""

    width: int
    vocab_size: int
    context_length: int
    tokenizer: Tokenizer
    frames: Frames
    end_of_turn: int
    """Id of the token that ends the assistant's turn."""
    placeholder: int
    """Id that stands where a feature goes; never sampled, never a target."""
    layers: int = 0
    """Layers with attention, for the count of operations."""
    axes: int = 1
    """Position axes P: 1 of a plain text model; time, row and column of one with M-RoPE."""

    def positions(self, length: int, regions: Sequence[tuple[int, Grid]], first: int = 0) -> Tensor:
        """Positions of `length` columns behind which others may follow, `first` being the first one free; [P, length].

        `regions` are the (column, grid) of the features among them. What follows starts one behind the largest
        position, so that columns added turn by turn stand where they would had they come at once.
        """
        return torch.arange(first, first + length, device="cpu").expand(self.axes, -1)

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings; [...] -> [..., D]."""

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: CacheView | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, L, V] (of the `last` columns only, if given) of columns [B, L, D] at positions [P, B, L].

        `mask` [B, L] is True on real columns; holes are allowed anywhere. With `cache` they follow what it holds,
        `cache.mask` says what each sees, and every layer adds its keys and values to it.
        The placeholder's logit is -inf, in sampling as in training.
        """

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The module that turns last hidden states [B, L, D] into logits: what goes into it is the hidden state."""

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer where the settings ask for it; `fixed` strings become single tokens."""

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write the architecture and the tokenizer into `folder`, so that a checkpoint needs nothing else."""

    @classmethod
    @abstractmethod
    def from_saved(cls, config: Any, folder: Path) -> LanguageModel:
        """Build the model from what `save_assets` wrote, weights still to come; raises InputError."""

    def load_weights(self) -> None:
        """Load pretrained weights where the settings name some; raises InputError."""


# --- Dialogue ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionCall:
    """One region of a tool call: the index of an earlier region and the box inside it, not yet checked."""

    index: int
    box: Mapping[str, Any]
    """The other keys of the region as written, `bbox_2d` for images; the source reads them."""


@dataclass(frozen=True)
class ToolCall:
    """A request to encode regions again under an inquiry."""

    regions: tuple[RegionCall, ...]
    inquiry: str


@dataclass(frozen=True)
class Turn:
    """A turn of the model: a thought, then a tool call or an answer; or, in `problem`, what is wrong with it."""

    thought: str = ""
    call: ToolCall | None = None
    answer: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Slot:
    """In a prompt: the place of a region's features, by the region's index in the trajectory."""

    region: int


@dataclass(frozen=True)
class Shown:
    """A region as it is announced to the model."""

    index: int
    source: Source
    size: Grid
    overview: bool
    label: str = ""
    """What its source says of it, to stand beside its index."""
    extent: Grid = ()
    """Units along each axis of its view, x first, as the encoder says: pixels of an image."""


BoxSchema = Callable[[tuple[int, ...]], Mapping[str, Any]]
"""What `Source.box_schema` says of a box in one region, by the box's first numbers; raises BoxError."""


class Dialogue(Component, ABC):
    """Prompts, the turn grammar, and how sources and crops are announced. `__init__(config)`."""

    steps: int
    """Units per side of a region in which boxes are written; 0: the units of its view, which the encoder must have."""
    around: tuple[str, str] = ("", "")
    """What stands right before and behind the features of a region, in dialogues given word by word too."""
    overviews_together: bool = False
    """Whether the first views are one inquiry group, with an empty inquiry; else each is its own."""

    def units(self, extent: Grid) -> int | tuple[int, ...]:
        """Units along each side of a region whose view has `extent`."""
        return self.steps or extent

    def contained(self) -> Any:
        """Its settings with what they name in files taken in, so that a checkpoint needs nothing else; None: as is."""
        return None

    @abstractmethod
    def opening(self, question: str, shown: Sequence[Shown], tool: bool) -> list[str | Slot]:
        """The user's first turn: regions, question, and whether the tool may be used."""

    @abstractmethod
    def observation(self, shown: Sequence[Shown], inquiry: str) -> list[str | Slot]:
        """The answer to a tool call: the regions it made."""

    def concluded(self, observation: Sequence[str | Slot]) -> list[str | Slot]:
        """The answer to the last tool call, which demands the answer too."""
        return [*observation, self.demand()]

    @abstractmethod
    def feedback(self, problem: str) -> str:
        """The answer to a turn that could not be carried out; behind `problem` the answer may be demanded."""

    @abstractmethod
    def demand(self) -> str:
        """The prompt that demands the answer, now."""

    @property
    def system(self) -> str:
        """The system prompt; empty for none."""
        return ""

    def instructions(self, sources: Sequence[Source]) -> str:
        """The system prompt of a dialogue about these sources; `system`, unless it explains their boxes."""
        return self.system

    @abstractmethod
    def parse(self, text: str) -> Turn:
        """Read a turn; what is wrong with it stands in `Turn.problem`, in words for the model. Never raises."""

    @abstractmethod
    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; the inverse of `parse`."""

    @property
    @abstractmethod
    def stop_strings(self) -> tuple[str, ...]:
        """Text at which a turn is complete."""

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Grammar strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return ()

    def grammar(self, written: str, boxes: Sequence[BoxSchema], call: bool) -> str | None:
        """How a turn may go on behind `written`: a Lark grammar as llguidance reads it; empty where it is complete.

        It describes a turn that `parse` finds nothing wrong with: a call, where `call` allows one, names regions that
        are there, at places that `boxes`, by the region's index, allow. It may end where what follows depends on what
        was written: as soon as what is written matches, it is asked for again. None: the dialogue has none.
        """
        return None


@dataclass(frozen=True)
class Spent:
    """What a dialogue has cost since a question was asked; what is kept from before costs nothing."""

    patches: int = 0
    """Tokens that went through the encoder."""
    features: int = 0
    """Features that went into the context."""
    read: int = 0
    """Other tokens that were given."""
    written: int = 0
    """Tokens that the model wrote."""
    probed: int = 0
    """Tokens that were read and written to probe the answer, and taken back."""
    flops: float = 0.0
    """Multiplications and additions, by the count of `chat.costs`."""
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """All that the language model read and wrote, features included."""
        return self.features + self.read + self.written + self.probed

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Probe:
    """The answer that the model would give now: its greedy turn after the demand, taken back unless it is accepted."""

    answer: str | None
    """None where the turn was no answer."""
    probability: float
    """Of the answer's own tokens, given what the model wrote before them; 0 where there is none."""
    turn_probability: float = 0.0
    """Of the whole turn, its thought included."""


@dataclass(frozen=True)
class LoopState:
    """What a stopping policy sees: the state of the dialogue since the last question.

    Policies are asked after each turn, before its call is carried out, and again at each look: when everything that was
    asked for has been read and the model would write its next turn, the first one included. What a policy `needs` is
    there at looks only.
    """

    turns: tuple[Turn, ...]
    calls: int
    """Tool calls carried out so far."""
    spent: Spent = Spent()
    planned: Spent = Spent()
    """After a turn: what carrying out its call would add, answering not counted."""
    look: bool = False
    """Whether this is a look."""
    probes: tuple[Probe, ...] = ()
    """The answers probed so far, one for every look; there at a look where a policy needs `probe`."""
    features: tuple[Tensor, ...] = ()
    """The mean feature [D] of the first views and of each call since, where a policy needs `features`; on the CPU."""
    hidden: Tensor | None = None
    """The last hidden state [D] at a look, where a policy needs `hidden`."""


@dataclass(frozen=True)
class Decision:
    """What a stopping policy says: go on, demand the answer now, or stop; and why."""

    action: Literal["go_on", "answer", "stop"]
    why: str = ""
    call: bool = True
    """Of `answer`, after a turn that calls the tool: whether that call is still carried out."""

    def __post_init__(self) -> None:
        if self.action not in ("go_on", "answer", "stop"):
            raise ValueError(f"a stopping policy cannot decide {self.action!r}; it is go_on, answer or stop.")


GO_ON = Decision("go_on")


NEEDS = frozenset({"probe", "features", "hidden"})
"""What the loop can find out for a stopping policy at a look."""


class StoppingPolicy(nn.Module, Component, ABC):
    """Decides after each turn and at each look. `__init__(config, width)`, the width of the model's hidden states.

    In a list of policies the first that does not say go on decides.
    """

    needs: frozenset[Literal["probe", "features", "hidden"]] = frozenset()
    """What the loop must find out for it at each look."""

    @abstractmethod
    def decide(self, state: LoopState) -> Decision:
        """Say go on, answer now (and why), or stop (and why). Pure: the same state, the same decision."""

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor | None:
        """What a policy learns from traces: the sum over turns of its loss, a scalar; None where it learns nothing.

        `hidden` [N, D] where each turn begins, `answered` [N] 1 where that turn answered, 0 where it looked again.
        """
        return None


# --- Learning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenTurn:
    """A turn of a reasoning trace; `boxes` are in the coordinates of their sources."""

    thought: str
    inquiry: str = ""
    boxes: tuple[tuple[int, Box], ...] = ()
    """(index of the region zoomed into, box) pairs; empty in the turn that answers."""
    answer: str | None = None
    demanded: bool = False
    """Of a turn that zooms: whether the answer is demanded with what it shows."""


@dataclass(frozen=True)
class Message:
    """A message of a dialogue that is given word by word."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | int, ...]
    """Text, and the numbers of the originals whose views stand between."""
    learned: bool = True
    """Of the assistant's: whether it is learned from, or only read."""


@dataclass(frozen=True)
class Conversation:
    """A dialogue word by word, every view of it a ready original: crops have been cut, and are shown as they are."""

    messages: tuple[Message, ...]
    inquiries: tuple[str, ...] = ()
    """What each group of originals is encoded under; empty texts for none."""
    groups: tuple[int, ...] = ()
    """The inquiry of every original, by its number; none given: each is encoded alone, under none."""


@dataclass(frozen=True)
class Sample:
    """A question about sources, with its answer and, for supervised training, a trace."""

    id: str
    question: str
    answer: str
    originals: tuple[Any, ...]
    """What `Source.open` takes: paths, or data in memory."""
    trace: tuple[GivenTurn, ...] = ()
    tool: bool = True
    """False: the opening demands the answer at once."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What evaluation groups by: `needs_zoom`, `family`, `several` (the crop holds several readable things), and
    `group`: items that share it (an image, a sentence) are no independent evidence, and intervals keep them together.
    """
    conversation: Conversation | None = None
    """In place of a trace, what is learned from, word by word."""
    max_pixels: int | None = None
    """Most pixels of each of its views, beside the encoder's own budget; None: that alone."""
    max_turns: int | None = None
    """Turns without an answer after which it is demanded, beside what stopping policies say; None: that alone."""


class Task(Component, ABC):
    """A data set or benchmark with its metric. `__init__(config)`."""

    @abstractmethod
    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one."""

    @abstractmethod
    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`; a pure function of settings, split and index."""

    @abstractmethod
    def corpus(self) -> Iterator[str]:
        """Texts a tokenizer can be trained on: questions, thoughts, inquiries and answers."""

    @abstractmethod
    def score(self, sample: Sample, answer: str | None) -> float:
        """The official score of an answer in [0, 1]; a missing answer scores 0."""

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Official metrics over groups of items: name -> a score in [0, 1] of every group, whose mean the metric is.

        `samples`, without originals and trace, are all that were asked, each with its score. The mean score is no
        metric of its own. Groups are independent of each other; where none was asked whole, its list is empty.
        """
        return {}


class Optimizer(Component, ABC):
    """Builds a torch optimizer. `__init__(config)`."""

    @abstractmethod
    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer of the named trainable parameters."""


# --- Reinforcement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What the settings of every reward begin with; a reward's own config inherits from it."""

    weight: float = setting(1.0, help="what the reward is multiplied with before all are added up")


class Reward(Component, ABC):
    """Scores a rollout. `__init__(config)`, its config a `RewardSettings`; the engine applies the weight."""

    @abstractmethod
    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """The unweighted reward: in [0, 1], or 0 and below for a cost. Pure; reads no clock, draws nothing."""


class Advantage(Component, ABC):
    """Turns rewards into advantages. `__init__(config)`."""

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of P prompt groups of G rollouts, each group by itself; [P, G] -> [P, G].

        Finite on groups of equal rewards too; these the engine finds, and leaves out.
        """


class PolicyLoss(Component, ABC):
    """The loss on produced tokens. `__init__(config)`. Loss of a step: sum over sequences i of w_i sum_t l_it."""

    @abstractmethod
    def tokens(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [N] of every produced token, and whether clipping stops its gradient, bool [N].

        `logp` [N] is under the weights that learn, `old` [N] under those that sampled, both float32 and at the
        sampling temperature; `advantages` [N] of each token's sequence. A token's values depend on that token alone.
        """

    @abstractmethod
    def weights(self, lengths: Sequence[int]) -> list[float]:
        """The weight w_i of every sequence, from the numbers of produced tokens of all sequences of a step.

        Over the whole optimizer step, so that no split into micro-batches changes a gradient. 0 for an empty one.
        """


# --- Checkpoints of others -----------------------------------------------------------------------------------------


class CheckpointFormat(Component, ABC):
    """Folders of weights that others write and read, with a config.json. `__init__(config)`.

    A folder is complete: what comes from a hub has been fetched, though perhaps without its weights where only
    `section` is asked for.
    """

    @abstractmethod
    def example(self) -> VisualChatModel:
        """A small model that it can write, with weights drawn anew, for the contract tests."""

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this config.json is of the format."""

    @abstractmethod
    def section(self, folder: Path) -> dict[str, Any]:
        """The section `model` of a recipe that the folder is, every shape in it spelled out; raises InputError.

        Of the folder it may name the tokenizers, which are saved with a run: what is trained needs it no more.
        """

    @abstractmethod
    def filled(self, section: ModelSection, folder: Path) -> frozenset[str]:
        """The kinds of parts of a recipe's model whose weights `load` fills; those of others are new, or their own."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Hold that the folder's files of weights are there and whole, reading no tensor; raises InputError."""

    @abstractmethod
    def load(self, model: VisualChatModel, folder: Path, parts: frozenset[str], dtype: torch.dtype | None) -> None:
        """Put the folder's weights into the `parts` of a model, which may be on the meta device; raises InputError.

        In `dtype`, or in the type they are stored in. On the CPU, with no second copy of them. Every key that is
        missing, unexpected or of another shape is named in one error.
        """

    @abstractmethod
    def save(self, model: VisualChatModel, folder: Path) -> None:
        """Write a model into `folder`, which is there and empty; raises InputError where it cannot be written so."""
