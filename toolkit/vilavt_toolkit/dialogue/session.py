"""A session: one dialogue as it grows. Training data and the loop build their trajectories through it alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from vilavt_toolkit.contracts import (
    Asked,
    Box,
    GroupInquiry,
    PlacedRegion,
    Region,
    RegionCall,
    Sample,
    Shown,
    Slot,
    Source,
    Spent,
    ToolCall,
    Trajectory,
    Turn,
    View,
)
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.boxes import BoxError

if TYPE_CHECKING:
    from vilavt_toolkit.models.model import VisualChatModel

SHORTER = (
    "Give the encoder smaller views (model.encoder.overview_pixels, zoom_pixels), or take a language model of a longer "
    "context."
)


class ContextFull(Exception):
    """What should have been added does not fit into the language model's context; nothing was added."""


class _Placed(NamedTuple):
    """A region to be shown, with its view and the number of its source."""

    source: int
    region: Region
    view: View


class _Parent(NamedTuple):
    """A region that boxes are written in: its source, its box, its units along each side, its view's scale."""

    number: int
    source: Source
    within: Box
    units: int | tuple[int, ...]
    scale: float


@dataclass(frozen=True)
class Plan:
    """A tool call made ready: its regions cut and prepared, its words tokenised, nothing of it added yet."""

    placed: tuple[_Placed, ...]
    inquiry: GroupInquiry
    pieces: tuple[str | Slot, ...]
    """The user turn that shows its regions."""
    closed: tuple[str | Slot, ...]
    """The same, demanding the answer too."""

    @property
    def views(self) -> list[View]:
        """The views that it would show."""
        return [view for _, _, view in self.placed]


class Tail(NamedTuple):
    """What stands behind the last feature of the last user turn, as it is and demanding the answer."""

    start: int
    open: tuple[str | Slot, ...]
    closed: tuple[str | Slot, ...]


class Mark(NamedTuple):
    """Where a dialogue was, for `rollback`."""

    lengths: tuple[int, ...]
    views: int
    ending: tuple[int, ...]
    state: tuple[object, ...]


class Session:
    """Sources, views and the trajectory of one dialogue. Everything added is added whole or not at all."""

    def __init__(
        self,
        model: VisualChatModel,
        sources: Sequence[Source],
        max_pixels: int | None = None,
        max_turns: int | None = None,
    ) -> None:
        self.model = model
        self.sources = list(sources)
        self.max_pixels = max_pixels
        """Most pixels of a view, beside the encoder's budget."""
        self.max_turns = max_turns
        """Turns without an answer after which it is demanded, beside what stopping policies say."""
        self.trajectory = Trajectory()
        self.views: list[View] = []
        """The view of every region of the trajectory, in order."""
        self.calls = 0
        self.tool = True
        """Whether tool calls are carried out."""
        self.announced = 0
        """How many of the sources have been shown."""
        self.spent = Spent()
        """What it has cost since the last question."""
        self.calls_before = 0
        """Calls carried out before the last question."""
        self.tail: Tail | None = None
        """Of a user turn that nobody has answered."""
        self._ready: tuple[list[Source], list[_Placed]] = ([], [])  # first views made ready, and of which sources

    @property
    def room(self) -> int:
        """Tokens that still fit into the context."""
        return self.model.language_model.context_length - len(self.trajectory.ids)

    # --- Marks -----------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """How many ids no further question can change: those of a user turn that nobody answered may yet go on."""
        return len(self.trajectory.ids) if self.tail is None else self.tail.start

    def mark(self) -> Mark:
        """Where the dialogue is now."""
        lengths = tuple(len(value) for value in self._lists())
        trajectory = self.trajectory
        state = (self.calls, self.tool, self.announced, self.spent, self.calls_before, self.tail)
        ending = tuple(trajectory.ids[self.settled :])
        return Mark(lengths, len(self.views), ending, (*state, trajectory.why, trajectory.cut_short))

    def rollback(self, mark: Mark) -> None:
        """Take back all that came after `mark`, whole; sources stay, those shown since waiting to be shown again."""
        for value, length in zip(self._lists(), mark.lengths, strict=True):
            del value[length:]
        del self.views[mark.views :]
        *state, self.trajectory.why, self.trajectory.cut_short = mark.state  # type: ignore[assignment]
        self.calls, self.tool, self.announced, self.spent, self.calls_before, self.tail = state  # type: ignore[assignment]
        self._cut(self.settled)
        self.trajectory.add_given(mark.ending)

    def _cut(self, length: int) -> None:
        """Take back ids from `length` on, none of them a feature's."""
        for kept in (self.trajectory.ids, self.trajectory.produced, self.trajectory.logprobs):
            del kept[length:]

    def _lists(self) -> list[list[object]]:
        values = (getattr(self.trajectory, item.name) for item in fields(self.trajectory))
        return [value for value in values if isinstance(value, list)]

    def copy(self) -> Session:
        """A session of its own that begins as this one; sources and views, being read only, are shared."""
        other = Session(self.model, self.sources, self.max_pixels, self.max_turns)
        other.trajectory, other.views = self.trajectory.copy(), list(self.views)
        other.calls, other.tool, other.announced = self.calls, self.tool, self.announced
        other.spent, other.calls_before = self.spent, self.calls_before
        other.tail, other._ready = self.tail, self._ready
        return other

    # --- The user's turns ------------------------------------------------------------------------------------------

    def add(self, *added: Source) -> None:
        """Add sources, to be shown with the next question; raises InputError, nothing added, where it cannot be."""
        if not added:
            return
        before = len(self.sources)
        self.sources.extend(added)
        try:
            placed = self._overviews()
            needed = self.length(self._opening("", placed, True)) + self._features(placed)
            if needed > self.room:
                room = f"{needed} tokens are needed and {self.room} remain"
                what = f"{added[0].name} does" if len(added) == 1 else f"{len(added)} images do"
                raise InputError(f"{what} not fit: {room}. {SHORTER}")
        except BaseException:
            del self.sources[before:]
            raise

    def open(self, question: str, tool: bool = True) -> None:
        """Write a question: the overviews of every source not yet shown, then its words; raises InputError."""
        try:
            self.begin(question, tool)
        except ContextFull as full:
            raise InputError(f"the question does not fit: {full} Shorten it or show fewer images.") from None

    def begin(self, question: str, tool: bool = True) -> None:
        """`open`, but what does not fit raises ContextFull."""
        if not isinstance(question, str):
            raise InputError(f"a question must be a text, not {type(question).__name__}.")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the question is no valid text ({error.reason} at {error.start}).") from None
        placed, mark = self._overviews(), self.mark()
        before = self._unanswered()
        start = len(self.trajectory.ids)
        opening = self._opening(question, placed, tool, before)
        closed = self._opening(question, placed, tool, before, demanding=True)
        try:
            self._write(opening, placed, *self._ungrouped(len(placed)), closed=closed)
        except ContextFull:
            self.rollback(mark)
            raise
        self.tool, self.announced = tool, len(self.sources)
        self.spent, self.calls_before = Spent(), self.calls
        self.trajectory.questions.append(Asked(question, len(self.trajectory.turns), start))
        self.trajectory.why, self.trajectory.cut_short = "", False

    def _unanswered(self) -> tuple[str | Slot, ...]:
        """Take back what stands behind the last feature of a user turn that nobody has answered yet, to go on there."""
        tail = self.tail
        if tail is None:
            return ()
        self._cut(tail.start)
        said = tail.open[:-1]  # all but what begins the answer
        apart = not said or not isinstance(said[-1], str) or not said[-1] or said[-1][-1].isspace()
        return said if apart else (*said, "\n")

    def _opening(
        self,
        question: str,
        placed: Sequence[_Placed],
        tool: bool,
        before: Sequence[str | Slot] = (),
        demanding: bool = False,
    ) -> list[str | Slot]:
        """The user turn of a question, behind what the turn holds already; with `demanding`, it demands the answer."""
        frames = self.model.language_model.frames
        beginning = before or [frames.following if self.trajectory.ids else self._beginning(tool)]
        opening = self.model.dialogue.opening(question, self._shown(placed), tool and not demanding)
        return [*beginning, *opening, frames.reply]

    def _overviews(self) -> list[_Placed]:
        """The first views of every source not yet shown, made ready."""
        waiting = self.sources[self.announced :]
        known = self._ready[0]
        if len(known) != len(waiting) or any(one is not other for one, other in zip(known, waiting, strict=True)):
            numbers = range(self.announced, len(self.sources))
            named = [(number, which) for number in numbers for which in range(len(self.sources[number].overviews()))]
            self._ready = waiting, self._first_views(named)
        return self._ready[1]

    def _first_views(self, named: Sequence[tuple[int, int]]) -> list[_Placed]:
        """First views that are shown together, as (number of the source, number of its overview), made ready."""
        placed, most = [], self.max_pixels
        for number, which in named:
            region = Region(self.sources[number], overview=which, among=len(named), max_pixels=most)
            placed.append(_Placed(number, region, self.model.prepare(region)))
        return placed

    def _ungrouped(self, count: int) -> tuple[list[GroupInquiry], list[int]]:
        """The groups of so many first views, and which of them each is in."""
        if self.model.dialogue.overviews_together:
            return [GroupInquiry()] * (count > 0), [0] * count
        return [GroupInquiry()] * count, list(range(count))

    def _beginning(self, tool: bool) -> str:
        """What stands before the first user turn's content, the system prompt included."""
        return self._headed(self.model.dialogue.instructions(self.sources) if tool else "")

    def _headed(self, system: str) -> str:
        frames = self.model.language_model.frames
        if system and frames.system is not None:
            return f"{frames.system[0]}{system}{frames.system[1]}"
        return f"{frames.first}{system}\n\n" if system else frames.first

    def _shown(self, placed: Sequence[_Placed]) -> list[Shown]:
        """The next regions as they are announced."""
        extent = self.model.encoder.encoder.extent
        return [
            Shown(index, region.source, view.size, region.box is None, region.source.label(region.extent), extent(view))
            for index, (_, region, view) in enumerate(placed, len(self.trajectory.regions))
        ]

    def give(self, turn: Turn, produced: bool = True) -> None:
        """Write a turn of a trace as if the model had produced it, its end-of-turn token included.

        Not `produced`: as one that somebody else wrote. Raises ContextFull, or CallError for a turn that no model can
        write.
        """
        language_model = self.model.language_model
        ids = language_model.tokenizer.encode(self.model.dialogue.write(turn))
        if len(ids) + 1 > self.room:
            raise ContextFull(f"{len(ids) + 1} tokens are needed and {self.room} remain.")
        if language_model.placeholder in ids:
            raise CallError("it holds the placeholder token, which is never a target.")
        self._record(turn)
        (self.trajectory.add_produced if produced else self.trajectory.add_given)([*ids, language_model.end_of_turn])

    def sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> Turn:
        """Record a turn as sampled; where a stop string cut it, the end-of-turn token is appended, masked."""
        language_model = self.model.language_model
        ended = bool(ids) and ids[-1] == language_model.end_of_turn
        turn = self.model.dialogue.parse(language_model.tokenizer.decode(ids[:-1] if ended else ids))
        self._record(turn)
        self.trajectory.add_produced(ids, logprobs)
        if not ended:
            self.trajectory.add_given([language_model.end_of_turn])
        return turn

    def _record(self, turn: Turn) -> None:
        """Record a turn whose ids are about to follow."""
        self.tail = None
        self.trajectory.starts.append(len(self.trajectory.ids))
        self.trajectory.turns.append(turn)
        self.trajectory.feedback.append("")

    def carry_out(self, call: ToolCall, reserve: int = 0, demand: bool = False) -> None:
        """Cut and announce the regions of a call; raises CallError, or ContextFull if `reserve` tokens do not remain.

        With `demand`, the same user turn demands the answer.
        """
        self.show(self.plan(call), reserve, demand)

    def plan(self, call: ToolCall) -> Plan:
        """Make the regions of a call ready, and add nothing yet; raises CallError."""
        if not self.tool:
            raise CallError("The tool cannot be used here.")
        named = [self._named(number, region) for number, region in enumerate(call.regions)]
        try:
            placed = [_Placed(source, region, self.model.prepare(region)) for source, region in named]
        except InputError as error:
            raise CallError(str(error)) from None
        inquiry = GroupInquiry(call.inquiry, tuple(self.model.tokenize_inquiry(call.inquiry)))
        frames, dialogue = self.model.language_model.frames, self.model.dialogue
        observation = dialogue.observation(self._shown(placed), call.inquiry)
        pieces, closed = (
            (frames.following, *version, frames.reply) for version in (observation, dialogue.concluded(observation))
        )
        return Plan(tuple(placed), inquiry, pieces, closed)

    def show(self, plan: Plan, reserve: int = 0, demand: bool = False) -> None:
        """Announce the regions of a plan made of this dialogue as it is; raises ContextFull."""
        groups = [len(self.trajectory.groups)] * len(plan.placed)
        self._write(plan.pieces, plan.placed, [plan.inquiry], groups, reserve, plan.closed, demand)
        self.calls += 1

    def feed_back(self, problem: str, reserve: int = 0, demand: bool = False) -> None:
        """Tell the model what was wrong with its turn; raises ContextFull. With `demand`, demand the answer too."""
        dialogue = self.model.dialogue
        closed = self._framed(dialogue.feedback(f"{problem}\n{dialogue.demand()}"))
        self._write(self._framed(dialogue.feedback(problem)), [], [], [], reserve, closed, demand)
        self.trajectory.feedback[-1] = problem

    def demand(self) -> None:
        """Demand the answer, now; raises ContextFull."""
        self._write(self._framed(self.model.dialogue.demand()), [], [], [], reserve=1)

    def _framed(self, text: str) -> list[str | Slot]:
        frames = self.model.language_model.frames
        return [f"{frames.following}{text}{frames.reply}"]

    def conclude(self) -> int:
        """Let the last user turn demand the answer; from where the ids are others. Raises ContextFull."""
        return self._end(lambda tail: tail.closed)

    def reopen(self) -> int:
        """Take back what `conclude` did; from where the ids are others."""
        return self._end(lambda tail: tail.open)

    def _end(self, version: Callable[[Tail], Sequence[str | Slot]]) -> int:
        """Write what stands behind the last feature of the last user turn once more."""
        tail = self.tail
        if tail is None:
            raise RuntimeError("The last turn is not the user's.")
        ids, trajectory = self._runs(version(tail))[-1], self.trajectory
        assert isinstance(ids, list)
        if len(ids) - (len(trajectory.ids) - tail.start) >= self.room:
            raise ContextFull(f"{len(ids)} tokens are needed and {self.room} remain.")
        self._cut(tail.start)
        trajectory.add_given(ids)
        return tail.start

    def _parent(self, index: int) -> _Parent:
        """A shown region, as one that boxes are written in."""
        parent = self.trajectory.regions[index]
        source = self.sources[parent.source]
        within = Region(source, parent.box, parent.overview).extent
        extent = self.model.encoder.encoder.extent(self.views[index])
        scale = source.scale(within, extent[0]) if extent else 0.0
        return _Parent(parent.source, source, within, self.model.dialogue.units(extent), scale)

    def _named(self, number: int, call: RegionCall) -> tuple[int, Region]:
        """The region that a call names, with the number of its source."""
        shown = len(self.trajectory.regions)
        if not 0 <= call.index < shown:
            known = f"0 to {shown - 1}" if shown else "none, since no image was shown"
            named = call.index if abs(call.index) < 10**9 else "with so many figures"
            raise CallError(f'"index" {named} of region {number} does not exist; there are {known}.')
        parent = self._parent(call.index)
        try:
            box = parent.source.read_box(call.box, parent.within, parent.units)
            return parent.number, Region(parent.source, box, scale=parent.scale, max_pixels=self.max_pixels)
        except BoxError as error:
            raise CallError(f"Region {number}: {error}") from None

    def _runs(self, pieces: Sequence[str | Slot]) -> list[list[int] | Slot]:
        """Pieces with their text as ids, text between two slots in one go; text, if empty, begins and ends them."""
        runs: list[list[int] | Slot] = []
        text = ""
        for piece in [*pieces, Slot(-1)]:
            if isinstance(piece, str):
                text += piece
                continue
            runs += [self.model.language_model.tokenizer.encode(text), piece]
            text = ""
        return runs[:-1]

    def _write(
        self,
        pieces: Sequence[str | Slot],
        placed: Sequence[_Placed],
        inquiries: Sequence[GroupInquiry],
        groups: Sequence[int],
        reserve: int = 0,
        closed: Sequence[str | Slot] | None = None,
        demand: bool = False,
    ) -> None:
        """Append a user turn; with `demand`, as `closed`: the same turn demanding the answer."""
        start, language_model = len(self.trajectory.regions), self.model.language_model
        runs = self._runs(closed if demand and closed is not None else pieces)
        grids = [self.model.grid(view.size) for _, _, view in placed]
        needed = sum(len(run) for run in runs if isinstance(run, list)) + self._features(placed)
        if needed + reserve > self.room:
            room = max(0, self.room - reserve)
            raise ContextFull(f"{needed} tokens are needed and {room} of {language_model.context_length} remain.")
        self.trajectory.groups.extend(inquiries)
        for run in runs:
            if isinstance(run, list):
                tail = len(self.trajectory.ids)
                self.trajectory.add_given(run)
                continue
            offset = run.region - start
            source, region, view = placed[offset]
            new = PlacedRegion(
                source,
                region.box,
                groups[offset],
                len(self.trajectory.ids),
                math.prod(grids[offset]),
                view.size,
                region.overview,
                grids[offset],
                region.scale,
                region.among,
            )
            self.trajectory.add_region(new, language_model.placeholder)
            self.views.append(view)
        # `closed` may differ from `pieces` behind the last feature only: what stands before has been read by then.
        self.tail = None if closed is None or demand else Tail(tail, _behind(pieces), _behind(closed))

    def length(self, pieces: Sequence[str | Slot]) -> int:
        """Tokens of pieces beside features."""
        return sum(len(run) for run in self._runs(pieces) if isinstance(run, list))

    def _features(self, placed: Sequence[_Placed]) -> int:
        return sum(self.model.count(view.size) for _, _, view in placed)


def _behind(pieces: Sequence[str | Slot]) -> tuple[str | Slot, ...]:
    """What stands behind the last slot."""
    slots = [number for number, piece in enumerate(pieces) if isinstance(piece, Slot)]
    return tuple(pieces[slots[-1] + 1 :] if slots else pieces)


def opened(model: VisualChatModel, sample: Sample, images: bool = True) -> Session:
    """A session of a sample's sources, or of none, in which nothing has been said; raises InputError."""
    sources = [model.open_source(original) for original in sample.originals] if images else []
    return Session(model, sources, sample.max_pixels, sample.max_turns)
