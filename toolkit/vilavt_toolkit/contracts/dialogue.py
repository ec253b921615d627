"""Dialogues: prompts, the grammar of a turn, and how sources and crops are announced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts.component import Component, Grid
from vilavt_toolkit.contracts.source import Source


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
