"""The trajectory: the one record that training, the loop, reinforcement, evaluation and reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from vilavt_toolkit.contracts.component import Box, Grid
from vilavt_toolkit.contracts.dialogue import RegionCall, ToolCall, Turn
from vilavt_toolkit.contracts.language_model import LanguageModel


@dataclass(frozen=True)
class PlacedRegion:
    """A region whose features stand at `start .. start + count` of the ids."""

    source: int
    box: Box | None
    """In the source's own coordinates; None for an overview."""
    group: int
    start: int
    count: int
    size: Grid
    """The grid of the encoder's view."""
    overview: int = 0
    """Without a box: which of the source's overviews."""
    grid: Grid = ()
    """The grid of its features, as the language model sees them."""
    scale: float = 0.0
    """Units of the view it was named in per unit of its source; 0 for a first view."""
    among: int = 1
    """How many first views were shown together with it, itself counted."""


@dataclass(frozen=True)
class Asked:
    """A question of the dialogue."""

    text: str
    turn: int
    """The number of the first turn after it."""
    start: int
    """Where its user turn begins in the ids."""


@dataclass(frozen=True)
class GroupInquiry:
    """The inquiry of one group: its text, and its ids as the inquiry encoder reads them."""

    text: str = ""
    ids: tuple[int, ...] = ()


@dataclass
class Trajectory:
    """Token ids exactly as sampled or given, and what the model produced of them. No turn is ever tokenised again."""

    ids: list[int] = field(default_factory=list)
    produced: list[bool] = field(default_factory=list)
    """The loss mask: True on the model's own tokens, the end-of-turn token included where it wrote it."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of every produced token when it was sampled; 0 elsewhere."""
    regions: list[PlacedRegion] = field(default_factory=list)
    groups: list[GroupInquiry] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Where each turn begins in the ids."""
    questions: list[Asked] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)
    """What each turn was told when it could not be carried out; empty for a good turn."""
    why: str = ""
    """Why the loop stopped."""
    cut_short: bool = False
    """Whether the loop ended it: the answer was demanded, or the context was full."""

    @property
    def answer(self) -> str | None:
        """The answer of the last turn, None where it has none."""
        return self.turns[-1].answer if self.turns else None

    def add_given(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not produce."""
        self._add(ids, False, [0.0] * len(ids))

    def add_produced(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Append the model's own tokens."""
        self._add(ids, True, [0.0] * len(ids) if logprobs is None else logprobs)

    def add_region(self, region: PlacedRegion, placeholder: int) -> None:
        """Append the places of a region's features, wherever it says that they stand."""
        self.regions.append(replace(region, start=len(self.ids)))
        self.add_given([placeholder] * region.count)

    def positions(self, language_model: LanguageModel, start: int = 0, first: int = 0) -> Tensor:
        """Positions of the ids from `start` on, no region being cut there, `first` being the first free; [P, L]."""
        regions = [(r.start - start, r.grid) for r in self.regions if r.start >= start]
        return language_model.positions(len(self.ids) - start, regions, first)

    def _add(self, ids: Sequence[int], produced: bool, logprobs: Sequence[float]) -> None:
        self.ids.extend(ids)
        self.produced.extend([produced] * len(ids))
        self.logprobs.extend(logprobs)

    def copy(self) -> Trajectory:
        """A trajectory of its own that begins as this one."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        lists: dict[str, Any] = {name: list(value) for name, value in values if isinstance(value, list)}
        return replace(self, **lists)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trajectory:
        """Read what `to_json` wrote."""
        regions = [
            PlacedRegion(
                **{
                    **r,
                    "box": None if r["box"] is None else tuple(r["box"]),
                    "size": tuple(r["size"]),
                    "grid": tuple(r.get("grid", ())),
                }
            )
            for r in data["regions"]
        ]
        groups = [GroupInquiry(g["text"], tuple(g["ids"])) for g in data["groups"]]
        turns = [_turn(turn) for turn in data["turns"]]
        questions = [Asked(**asked) for asked in data.get("questions", ())]
        return cls(**{**data, "regions": regions, "groups": groups, "turns": turns, "questions": questions})


def _turn(data: Mapping[str, Any]) -> Turn:
    call = data["call"]
    if call is not None:
        call = ToolCall(tuple(RegionCall(**region) for region in call["regions"]), call["inquiry"])
    return Turn(**{**data, "call": call})
