"""A session: one dialogue as it grows. Training data and the loop build their trajectories through it alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vilavt_toolkit.contracts import (
    Box,
    GivenTurn,
    Region,
    RegionCall,
    Sample,
    Shown,
    Slot,
    Source,
    ToolCall,
    Turn,
    View,
)
from vilavt_toolkit.dialogue.trajectory import GroupInquiry, Trajectory
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.regions import BoxError

if TYPE_CHECKING:
    from vilavt_toolkit.model import VisualChatModel


class CallError(Exception):
    """Why a tool call cannot be carried out, in words for the model."""


class ContextFull(Exception):
    """What should have been added does not fit into the language model's context; nothing was added."""


class _Placed(NamedTuple):
    """A region to be shown, with its view and the number of its source."""

    source: int
    region: Region
    view: View


class Session:
    """Sources, views and the trajectory of one dialogue. Everything added is added whole or not at all."""

    def __init__(self, model: VisualChatModel, sources: Sequence[Source]) -> None:
        self.model = model
        self.sources = list(sources)
        self.trajectory = Trajectory()
        self.views: list[View] = []
        """The view of every region of the trajectory, in order."""
        self.calls = 0
        self.tool = True
        """Whether tool calls are carried out."""

    @property
    def room(self) -> int:
        """Tokens that still fit into the context."""
        return self.model.language_model.context_length - len(self.trajectory.ids)

    def open(self, question: str, tool: bool = True) -> None:
        """Write the user's first turn: the overviews of every source, then the question; raises InputError."""
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the question is no valid text ({error.reason} at {error.start}).") from None
        self.tool = tool
        placed = [
            _Placed(number, region, self.model.prepare(region))
            for number, source in enumerate(self.sources)
            for region in (Region(source, overview=which) for which in range(len(source.overviews())))
        ]
        opening = self.model.dialogue.opening(question, self._shown(placed), tool)
        pieces = [self._beginning(tool), *opening, self.model.language_model.frames.reply]
        try:
            self._write(pieces, placed, [GroupInquiry()] * len(placed), list(range(len(placed))))
        except ContextFull as full:
            raise InputError(f"the question does not fit: {full} Shorten it or show fewer images.") from None

    def _beginning(self, tool: bool) -> str:
        """What stands before the first user turn's content, the system prompt included."""
        frames = self.model.language_model.frames
        system = self.model.dialogue.instructions(self.sources) if tool else ""
        if system and frames.system is not None:
            return f"{frames.system[0]}{system}{frames.system[1]}"
        return f"{frames.first}{system}\n\n" if system else frames.first

    def _shown(self, placed: Sequence[_Placed]) -> list[Shown]:
        """The next regions as they are announced."""
        return [
            Shown(index, region.source, view.size, region.box is None, region.source.label(region.extent))
            for index, (_, region, view) in enumerate(placed, len(self.trajectory.regions))
        ]

    def give(self, turn: Turn) -> None:
        """Write a turn of a trace as if the model had produced it, its end-of-turn token included.

        Raises ContextFull, or CallError for a turn that no model can write.
        """
        language_model = self.model.language_model
        ids = language_model.tokenizer.encode(self.model.dialogue.write(turn))
        if len(ids) + 1 > self.room:
            raise ContextFull(f"{len(ids) + 1} tokens are needed and {self.room} remain.")
        if language_model.placeholder in ids:
            raise CallError("it holds the placeholder token, which is never a target.")
        self.trajectory.add_produced([*ids, language_model.end_of_turn])
        self._record(turn)

    def sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> Turn:
        """Record a turn as sampled; where a stop string cut it, the end-of-turn token is appended, masked."""
        language_model = self.model.language_model
        ended = bool(ids) and ids[-1] == language_model.end_of_turn
        turn = self.model.dialogue.parse(language_model.tokenizer.decode(ids[:-1] if ended else ids))
        self.trajectory.add_produced(ids, logprobs)
        if not ended:
            self.trajectory.add_given([language_model.end_of_turn])
        self._record(turn)
        return turn

    def _record(self, turn: Turn) -> None:
        self.trajectory.turns.append(turn)
        self.trajectory.feedback.append("")

    def carry_out(self, call: ToolCall, reserve: int = 0, demand: bool = False) -> None:
        """Cut and announce the regions of a call; raises CallError, or ContextFull if `reserve` tokens do not remain.

        With `demand`, the same user turn demands the answer.
        """
        if not self.tool:
            raise CallError("The tool cannot be used here.")
        named = [self._named(number, region) for number, region in enumerate(call.regions)]
        try:
            placed = [_Placed(source, region, self.model.prepare(region)) for source, region in named]
        except InputError as error:
            raise CallError(str(error)) from None
        inquiry = GroupInquiry(call.inquiry, tuple(self.model.tokenize_inquiry(call.inquiry)))
        frames = self.model.language_model.frames
        closing = [self.model.dialogue.demand()] if demand else []
        observation = self.model.dialogue.observation(self._shown(placed), call.inquiry)
        pieces = [frames.following, *observation, *closing, frames.reply]
        self._write(pieces, placed, [inquiry], [len(self.trajectory.groups)] * len(placed), reserve)
        self.calls += 1

    def feed_back(self, problem: str, reserve: int = 0, demand: bool = False) -> None:
        """Tell the model what was wrong with its turn; raises ContextFull. With `demand`, demand the answer too."""
        closing = f"\n{self.model.dialogue.demand()}" if demand else ""
        self._tell(self.model.dialogue.feedback(problem) + closing, reserve)
        self.trajectory.feedback[-1] = problem

    def demand(self) -> None:
        """Demand the answer, now; raises ContextFull."""
        self._tell(self.model.dialogue.demand(), reserve=1)

    def _tell(self, text: str, reserve: int) -> None:
        frames = self.model.language_model.frames
        self._write([f"{frames.following}{text}{frames.reply}"], [], [], [], reserve)

    def _parent(self, index: int) -> tuple[int, Source, Box]:
        """The number of the source that a shown region is of, the source, and the region's box."""
        parent = self.trajectory.regions[index]
        source = self.sources[parent.source]
        return parent.source, source, Region(source, parent.box, parent.overview).extent

    def _named(self, number: int, call: RegionCall) -> tuple[int, Region]:
        """The region that a call names, with the number of its source."""
        shown = len(self.trajectory.regions)
        if not 0 <= call.index < shown:
            known = f"0 to {shown - 1}" if shown else "none, since no image was shown"
            named = call.index if abs(call.index) < 10**9 else "with so many figures"
            raise CallError(f'"index" {named} of region {number} does not exist; there are {known}.')
        source_number, source, within = self._parent(call.index)
        try:
            return source_number, Region(source, source.read_box(call.box, within, self.model.dialogue.steps))
        except BoxError as error:
            raise CallError(f"Region {number}: {error}") from None

    def _write(
        self,
        pieces: Sequence[str | Slot],
        placed: Sequence[_Placed],
        inquiries: Sequence[GroupInquiry],
        groups: Sequence[int],
        reserve: int = 0,
    ) -> None:
        """Append pieces; text between two slots is tokenised in one go."""
        start, language_model = len(self.trajectory.regions), self.model.language_model
        runs: list[list[int] | Slot] = []
        text = ""
        for piece in [*pieces, Slot(-1)]:
            if isinstance(piece, str):
                text += piece
                continue
            runs += [language_model.tokenizer.encode(text), piece]
            text = ""
        counts = [self.model.count(view.size) for _, _, view in placed]
        needed = sum(len(run) for run in runs if isinstance(run, list)) + sum(counts)
        if needed + reserve > self.room:
            room = max(0, self.room - reserve)
            raise ContextFull(f"{needed} tokens are needed and {room} of {language_model.context_length} remain.")
        self.trajectory.groups.extend(inquiries)
        for run in runs[:-1]:
            if isinstance(run, list):
                self.trajectory.add_given(run)
                continue
            offset = run.region - start
            source, region, view = placed[offset]
            place = language_model.placeholder
            self.trajectory.add_region(
                source, region.box, groups[offset], view.size, counts[offset], place, region.overview
            )
            self.views.append(view)

    def follow(self, trace: Sequence[GivenTurn]) -> None:
        """Write a whole trace; raises InputError naming the turn that cannot be written."""
        for number, given in enumerate(trace):
            try:
                self._follow(given)
            except (CallError, ContextFull) as error:
                raise InputError(f"turn {number} of the trace: {error}") from None

    def _follow(self, given: GivenTurn) -> None:
        if bool(given.boxes) == (given.answer is not None):
            raise CallError("it must either name boxes or answer.")
        if not given.boxes:
            self._give_right(Turn(given.thought, answer=given.answer))
            return
        steps, regions = self.model.dialogue.steps, []
        for index, box in given.boxes:
            if not 0 <= index < len(self.trajectory.regions):
                raise CallError(f"region {index} does not exist; there are {len(self.trajectory.regions)}.")
            _, source, within = self._parent(index)
            try:
                regions.append(RegionCall(index, source.write_box(box, within, steps)))
            except BoxError as error:
                raise CallError(str(error)) from None
        call = ToolCall(tuple(regions), given.inquiry)
        self._give_right(Turn(given.thought, call=call))
        self.carry_out(call)

    def _give_right(self, turn: Turn) -> None:
        """Give a turn that reads back as it was written, so that no tag or empty answer is taught."""
        problem = self.model.dialogue.parse(self.model.dialogue.write(turn)).problem
        if problem:
            raise CallError(problem)
        self.give(turn)


def session_of(model: VisualChatModel, sample: Sample) -> Session:
    """The session of a training sample: its sources opened, its trace written; raises InputError naming the sample."""
    try:
        if not sample.trace:
            raise InputError("it has no trace to learn from.")
        session = Session(model, [model.open_source(original) for original in sample.originals])
        session.open(sample.question, sample.tool)
        session.follow(sample.trace)
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from None
    return session
