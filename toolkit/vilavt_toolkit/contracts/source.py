"""Sources: originals (images, videos, point clouds) that regions are cropped from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image

from vilavt_toolkit.contracts.component import Box, Component


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
        from vilavt_toolkit.utils.pictures import enlarged

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
