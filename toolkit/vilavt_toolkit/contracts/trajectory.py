"""The trajectory: the one record that training, the loop, reinforcement, evaluation and reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from vilavt_toolkit.contracts.component import Box
from vilavt_toolkit.contracts.dialogue import RegionCall, ToolCall, Turn
from vilavt_toolkit.contracts.language_model import LanguageModel
from vilavt_toolkit.contracts.source import Region, ShownAs, Source
from vilavt_toolkit.packed.tokens import Grid


@dataclass(frozen=True)
class ShownRegion:
    """Holds a region that was shown: its features stand at `start .. start + count` of the ids."""

    source: int
    box: Box | None
    """Box in the source's coordinates; None for an overview."""
    group: int
    start: int
    count: int
    size: Grid
    """Grid of the encoder's view."""
    overview: int = 0
    """Index of the source's overview, for a region without a box."""
    grid: Grid = ()
    """Grid of its features as the language model sees them."""
    shown: ShownAs = field(default_factory=ShownAs)
    """Record of how it came to be shown; in JSON its numbers are the flat keys `scale`, `among` and `position`."""

    def to_region(self, source: Source, max_pixels: int | None = None) -> Region:
        """Return the region of its opened source, ready to be cut again under the same limit of pixels."""
        return Region(source, self.box, overview=self.overview, shown=self.shown, max_pixels=max_pixels)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        data = asdict(self)
        del data["shown"]
        # `share` is not written: it follows from the box and the source.
        data |= {"scale": self.shown.parent_scale, "among": self.shown.overview_count}
        return data | ({"position": self.shown.position} if self.shown.position else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShownRegion:
        """Read the data that `to_json` wrote."""
        values = dict(data)
        # The first chats that were saved have none of these four keys.
        shown = ShownAs(values.pop("scale", 0.0), values.pop("among", 1), position=tuple(values.pop("position", ())))
        grid = tuple(values.pop("grid", ()))
        box = None if values["box"] is None else tuple(values["box"])
        return cls(**{**values, "box": box, "size": tuple(values["size"]), "grid": grid, "shown": shown})


@dataclass(frozen=True)
class AskedQuestion:
    """Holds a question of the dialogue."""

    text: str
    turn: int
    """Number of the first turn after it."""
    start: int
    """Index in the ids at which its user turn begins."""


@dataclass(frozen=True)
class InquiryTokens:
    """Holds the inquiry of one group: its text, and its ids for the inquiry encoder."""

    text: str = ""
    ids: tuple[int, ...] = ()


@dataclass
class Trajectory:
    """Holds token ids exactly as sampled or given, and which of them the model produced. No turn is tokenised again."""

    ids: list[int] = field(default_factory=list)
    produced: list[bool] = field(default_factory=list)
    """The loss mask: True on the model's own tokens, also on an end-of-turn token that it wrote."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of every produced token when it was sampled; 0 elsewhere."""
    regions: list[ShownRegion] = field(default_factory=list)
    groups: list[InquiryTokens] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Index in the ids at which each turn begins."""
    questions: list[AskedQuestion] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)
    """The problem of each turn that was rejected; empty for a good turn."""
    why: str = ""
    """Reason why the loop stopped."""
    cut_short: bool = False
    """True if the loop ended the dialogue: the answer was demanded, or the context was full."""

    @property
    def answer(self) -> str | None:
        """The answer of the last turn, or None."""
        return self.turns[-1].answer if self.turns else None

    def turn_ids(self, turn: int) -> list[int]:
        """Return the ids that the model produced in a turn; `turn` is its number, or -1 for the last one."""
        start = self.starts[turn]
        later = [begin for begin in self.starts if begin > start]
        end = later[0] if later else len(self.ids)
        # A sampled turn may be followed by feedback, regions and a demand. They are not the model's.
        return [self.ids[place] for place in range(start, end) if self.produced[place]]

    def add_given(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not produce."""
        self._extend(ids, False, [0.0] * len(ids))

    def add_produced(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Append the model's own tokens."""
        self._extend(ids, True, [0.0] * len(ids) if logprobs is None else logprobs)

    def add_region(self, region: ShownRegion, placeholder: int) -> None:
        """Append the placeholders of a region's features at the end, whatever its own `start` says."""
        self.regions.append(replace(region, start=len(self.ids)))
        self.add_given([placeholder] * region.count)

    def positions(self, language_model: LanguageModel, start: int = 0, first: int = 0) -> Tensor:
        """Return the positions [P, L] of the ids from `start` on, the first of which has the position `first`.

        `start` must not lie within a region.
        """
        # The KV cache holds what comes before `start`, so positions are asked for the new ids alone.
        regions = [(r.start - start, r.grid) for r in self.regions if r.start >= start]
        return language_model.positions(len(self.ids) - start, regions, first)

    def _extend(self, ids: Sequence[int], produced: bool, logprobs: Sequence[float]) -> None:
        # The three lists have one entry per token; the loss mask and the log-probabilities are read by index.
        self.ids.extend(ids)
        self.produced.extend([produced] * len(ids))
        self.logprobs.extend(logprobs)

    def copy(self) -> Trajectory:
        """Return a copy that can grow without changing this trajectory."""
        # The lists are copied, their records are shared: all of them are frozen.
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        lists: dict[str, Any] = {name: list(value) for name, value in values if isinstance(value, list)}
        return replace(self, **lists)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return asdict(self) | {"regions": [region.to_json() for region in self.regions]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trajectory:
        """Read the data that `to_json` wrote, of this or an earlier version."""
        regions = [ShownRegion.from_json(region) for region in data["regions"]]
        groups = [InquiryTokens(g["text"], tuple(g["ids"])) for g in data["groups"]]
        turns = [_turn_from_json(turn) for turn in data["turns"]]
        # Trajectories saved by the first versions have no `questions`.
        questions = [AskedQuestion(**asked) for asked in data.get("questions", ())]
        return cls(**{**data, "regions": regions, "groups": groups, "turns": turns, "questions": questions})


def _turn_from_json(data: Mapping[str, Any]) -> Turn:
    call = data["call"]
    if call is not None:
        call = ToolCall(tuple(RegionCall(**region) for region in call["regions"]), call["inquiry"])
    return Turn(**{**data, "call": call})
