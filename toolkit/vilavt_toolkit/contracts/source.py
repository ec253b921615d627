"""Sources: originals (images, videos, point clouds) that regions are cropped from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image

from vilavt_toolkit.contracts.component import Box, Component


@dataclass(frozen=True)
class ShownAs:
    """Holds the facts about how a region came to be shown, on which the paper's code bases the size of its view.

    The paper's code enlarges a zoom relative to the view that it was named in, up to the size of its whole source.
    It also divides one pixel budget among all overviews that are shown together. An encoder that repeats those sizes
    (`qwen2_5_vl` with `resize: paper`) reads this record, and every other encoder may ignore it.
    """

    parent_scale: float = 0.0
    """Units of the view that it was named in, per unit of its source, along x. 0: it was named in no view."""
    overview_count: int = 1
    """Number of overviews that are shown together with it, itself included."""
    share: tuple[float, ...] = ()
    """Size of its box as a fraction of the source along each axis, x first; empty until it is cut out."""
    position: tuple[float, ...] = ()
    """Edges of its box as fractions of the source, computed as in the paper's code; empty: they follow from the box."""

    @classmethod
    def from_parent_view(cls, source: Source, position: Sequence[float], units: float) -> ShownAs:
        """Return the record of a region that was named in a view at `position` of its source that is `units` wide."""
        # Along x alone: views keep the aspect ratio, but for rounding to whole tokens.
        (start, *_), (end, *_) = _split_edges(source.extent)
        lows, highs = _split_edges(tuple(position))
        return cls(parent_scale=units / ((end - start) * (highs[0] - lows[0])))


@dataclass(frozen=True)
class Crop:
    """Holds what was cut out of a source; `data` is for the encoder of the same modality (images: uint8 [h, w, 3])."""

    data: Any
    modality: str
    overview: bool
    """True for an overview of the source, False for a zoom: their pixel budgets differ."""
    shown: ShownAs | None = None
    """Record of how its region came to be shown; None if it was cut out of a source directly, without a `Region`."""
    max_pixels: int | None = None
    """Most pixels of its view, in addition to the encoder's own budget; None: the encoder's budget alone."""


class Source(Component, ABC):
    """An original that regions are cut from. Every box is in its coordinates, however deep zooms are nested."""

    modality: ClassVar[str]
    box_key: ClassVar[str]
    """Key of the box in a tool call, `bbox_2d` for images."""
    box_help: ClassVar[tuple[str, str]] = (
        '"bbox_2d": [x1, y1, x2, y2]',
        "boxes are in {steps} steps from its left and top edge.",
    )
    """An example of a box for a system prompt, and what explains it; a dialogue fills in `{steps}`."""
    opens: ClassVar[tuple[str, ...]] = ()
    """Kinds of files that it opens, of image, video and point_cloud; empty: those of its modality alone."""
    suffix: ClassVar[str] = ".png"
    """Suffix of the files that `save` writes."""

    @classmethod
    def example(cls) -> Any:
        """Return an original in memory, for the contract tests; any box of half its sides can be cut out of it."""
        return None

    @classmethod
    def channels(cls, config: Any) -> int | None:
        """Return the count of numbers per element of a crop, coordinates included; None if it varies."""
        return None

    @classmethod
    @abstractmethod
    def open(cls, original: Any, config: Any) -> Source:
        """Open a file (path), or wrap data in memory; raises InputError that names the file and what to do."""

    @property
    def name(self) -> str:
        """Name in errors: the path of its file, or a phrase for data in memory."""
        return f"the {self.modality} in memory"

    @property
    @abstractmethod
    def extent(self) -> Box:
        """Box of the whole source; for a video, whose boxes lie in one frame, the box of the first overview."""

    def overviews(self) -> Sequence[Box]:
        """Return the boxes of its overviews in the order in which they are shown; by default the whole, once."""
        return (self.extent,)

    def label(self, box: Box) -> str:
        """Return the words that stand beside a region's index in a prompt, such as its time in a video, or nothing."""
        return ""

    @abstractmethod
    def read_box(self, value: Mapping[str, Any], within: Box, box_units: int | tuple[int, ...]) -> Box:
        """Read the box of a tool call, which is every key but `index`; raises BoxError in words for the model.

        The region `within` is `box_units` units long on each side, or along each axis.
        """

    @abstractmethod
    def write_box(self, box: Box, within: Box, box_units: int | tuple[int, ...]) -> dict[str, Any]:
        """Write `box` as the keys of a tool call, relative to `within`; the inverse of `read_box` up to rounding."""

    def box_schema(
        self, within: Box, box_units: int | tuple[int, ...], begun: tuple[int, ...] = ()
    ) -> Mapping[str, Any] | None:
        """Return the JSON schema of a tool call's keys other than `index`, for a box with the first numbers `begun`.

        The properties come in the order of `write_box`, the box first: an array whose `prefixItems` are whole numbers,
        `begun` as constants, the others with a `minimum` and a `maximum`. Further properties are numbers. The bounds
        of the next number are exact: every value within them can be completed to a box that `read_box` accepts and
        whose crop can become a view. Constrained decoding asks number by number, since the bounds of the last two
        depend on the first two. Raises BoxError if no value can be completed. None: the source has no schema.
        """
        return None

    @abstractmethod
    def crop(self, box: Box, overview: bool = False) -> Crop:
        """Cut `box` out of the original, never out of an earlier crop."""

    @abstractmethod
    def draw(self, boxes: Sequence[Box], size: int | None = None) -> Image:
        """Draw numbered boxes on a picture of the source whose longer side has `size` pixels; None: its own size."""

    def draw_crop(self, data: Any, size: int) -> Image:
        """Draw the `data` of a crop of this source on a picture whose longer side has `size` pixels.

        A source whose crops are not images, uint8 [h, w, 3], overrides it.
        """
        # Imported on use, so that reading the contracts does not import Pillow.
        from vilavt_toolkit.utils.pictures import enlarge_view

        return enlarge_view(data, size)

    def save(self, path: Path) -> None:
        """Write the original into a file with this kind's `suffix` that `open` can read."""
        self.draw([]).save(path, format="PNG")


@dataclass(frozen=True)
class Region:
    """Holds a source and a box of it; without a box, one of its overviews."""

    source: Source
    box: Box | None = None
    overview: int = 0
    """Index of the source's overview, for a region without a box."""
    shown: ShownAs = field(default_factory=ShownAs)
    """Record of how it came to be shown; the default is a region that was named in no view."""
    max_pixels: int | None = None
    """Most pixels of its view, in addition to the encoder's own budget; None: the encoder's budget alone."""

    @property
    def extent(self) -> Box:
        """Box of the region in the source's coordinates, also for an overview."""
        return self.source.overviews()[self.overview] if self.box is None else self.box

    def crop(self) -> Crop:
        """Cut the region out of its source."""
        crop = self.source.crop(self.extent, overview=self.box is None)
        # The source knows its own extent, so the share is computed here and never has to be stored.
        lows, highs = _split_edges(self.shown.position or position_in_source(self.source, self.extent))
        share = tuple(high - low for low, high in zip(lows, highs, strict=True))
        return replace(crop, shown=replace(self.shown, share=share), max_pixels=self.max_pixels)


def position_in_source(source: Source, box: Box) -> tuple[float, ...]:
    """Return the edges of a box as fractions of its source: the lower ones along its axes, then the upper ones."""
    (lows, highs), (starts, ends) = _split_edges(box), _split_edges(source.extent)
    axes = list(zip(lows, highs, starts, ends, strict=True))
    return (
        *((low - start) / (end - start) if end > start else 0.0 for low, _, start, end in axes),
        *((high - start) / (end - start) if end > start else 1.0 for _, high, start, end in axes),
    )


def _split_edges(box: Box) -> tuple[Box, Box]:
    """Return the lower edges of a box along its axes, and the upper ones."""
    # An odd leading number (a video's time) is not an axis.
    sides = box[len(box) % 2 :]
    return sides[: len(sides) // 2], sides[len(sides) // 2 :]
