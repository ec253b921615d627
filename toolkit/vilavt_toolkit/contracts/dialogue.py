"""Dialogues: prompts, the grammar of a turn, and how regions are announced to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.source import Source
from vilavt_toolkit.packed.tokens import Grid


@dataclass(frozen=True)
class RegionCall:
    """Holds one region of a tool call, not yet checked: the index of an earlier region, and a box in it."""

    index: int
    box: Mapping[str, Any]
    """The other keys of the region as the model wrote them, `bbox_2d` for images; the source reads them."""


@dataclass(frozen=True)
class ToolCall:
    """A request to encode regions again under an inquiry."""

    regions: tuple[RegionCall, ...]
    inquiry: str


@dataclass(frozen=True)
class Turn:
    """Holds a turn of the model: a thought, then a tool call or an answer; or a `problem`, in words for the model."""

    thought: str = ""
    call: ToolCall | None = None
    answer: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Slot:
    """Marks the place of a region's features in a prompt, by the region's index in the trajectory."""

    region: int


@dataclass(frozen=True)
class AnnouncedRegion:
    """Holds a region as a prompt announces it to the model."""

    index: int
    source: Source
    size: Grid
    overview: bool
    label: str = ""
    """The words of its source that stand beside its index, such as the time of a video frame."""
    extent: Grid = ()
    """Units along each axis of its view, x first, as `Encoder.extent` gives them: pixels of an image."""


BoxSchema = Callable[[tuple[int, ...]], Mapping[str, Any]]
"""Returns `Source.box_schema` for a box in one region, given the box's first numbers; raises BoxError."""


class Dialogue(Component, ABC):
    """Prompts, the turn grammar, and how sources and crops are announced. `__init__(config)`."""

    units_per_side: int
    """Units per side of a region, in which boxes are written. 0: those of its view, so `Encoder.extent` is needed."""
    feature_delimiters: tuple[str, str] = ("", "")
    """Text right before and right after the features of a region, in conversations given word by word too."""
    overviews_together: bool = False
    """True if all overviews are one inquiry group, with an empty inquiry; False if each is a group of its own."""

    def box_units(self, extent: Grid) -> int | tuple[int, ...]:
        """Return the units of boxes along each side of a region whose view has `extent`."""
        return self.units_per_side or extent

    def self_contained_config(self) -> Any:
        """Return its config with the files that it names read into it, or None if it names no file.

        A checkpoint stores this config, so that it needs nothing else.
        """
        return None

    @abstractmethod
    def opening(self, question: str, shown: Sequence[AnnouncedRegion], tool: bool) -> list[str | Slot]:
        """Return the first user turn: regions and question; with `tool`, the model may call the tool."""

    @abstractmethod
    def observation(self, shown: Sequence[AnnouncedRegion], inquiry: str) -> list[str | Slot]:
        """Return the user turn that answers a tool call: the regions that it showed."""

    def observation_with_demand(self, observation: Sequence[str | Slot]) -> list[str | Slot]:
        """Return the user turn that answers the last tool call and also demands the answer."""
        return [*observation, self.demand()]

    @abstractmethod
    def feedback(self, problem: str) -> str:
        """Return the user turn for a turn that was rejected; `problem` may end with a demand for the answer."""

    @abstractmethod
    def demand(self) -> str:
        """Return the text that demands the answer now."""

    @property
    def system(self) -> str:
        """The system prompt, or an empty text."""
        return ""

    def instructions(self, sources: Sequence[Source]) -> str:
        """Return the system prompt of a dialogue about these sources: `system`, unless it explains their boxes."""
        return self.system

    # The model may write anything, and its faults are feedback for it, not errors of the program.
    @abstractmethod
    def parse(self, text: str) -> Turn:
        """Read a turn. A fault in it becomes `Turn.problem`, in words for the model, and never an exception."""

    # Traces are written and parsed back, so that training and generation cannot come apart.
    @abstractmethod
    def write(self, turn: Turn) -> str:
        """Write a turn as the model should; the inverse of `parse`."""

    @property
    @abstractmethod
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that complete a turn when the model writes one of them."""

    def fixed_strings(self, box_key: str) -> tuple[str, ...]:
        """Return the strings that a tokenizer trained on this dialogue should hold as single tokens."""
        return ()

    def grammar(self, written: str, boxes: Sequence[BoxSchema], call: bool) -> str | None:
        """Return a Lark grammar, in llguidance's dialect, of how a turn may continue after `written`.

        It describes turns in which `parse` finds no problem. A call, if `call` allows one, names regions that exist,
        with boxes that `boxes`, by the region's index, allow. The grammar may end where the rest depends on the text
        to come: once the text matches it, the next grammar is asked for. At the beginning `written` is empty, or the
        tag that the chat template opens for the model (`TurnTemplate.opened`). Empty: the turn is complete. None: the
        dialogue has no grammar.
        """
        return None
