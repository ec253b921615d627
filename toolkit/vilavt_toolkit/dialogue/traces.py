"""Dialogues that are given: traces and conversations of training data, written as a model would have led them."""

from __future__ import annotations

from collections.abc import Sequence

from vilavt_toolkit.contracts import (
    Conversation,
    GivenTurn,
    GroupInquiry,
    Message,
    RegionCall,
    Sample,
    Slot,
    ToolCall,
    Turn,
)
from vilavt_toolkit.dialogue.session import SHORTER, ContextFull, Session
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.vision.boxes import BoxError


class GivenSession(Session):
    """A session whose turns are given."""

    def follow(self, trace: Sequence[GivenTurn]) -> None:
        """Write a whole trace; raises InputError naming the turn that cannot be written."""
        for number, given in enumerate(trace):
            try:
                self._follow(given)
            except ContextFull as full:
                raise InputError(f"turn {number} of the trace: {full} {SHORTER}") from None
            except CallError as error:
                raise InputError(f"turn {number} of the trace: {error}") from None

    def _follow(self, given: GivenTurn) -> None:
        if bool(given.boxes) == (given.answer is not None):
            raise CallError("it must either name boxes or answer.")
        if not given.boxes:
            self._give_right(Turn(given.thought, answer=given.answer))
            return
        regions = []
        for index, box in given.boxes:
            if not 0 <= index < len(self.trajectory.regions):
                raise CallError(f"region {index} does not exist; there are {len(self.trajectory.regions)}.")
            parent = self._parent(index)
            try:
                regions.append(RegionCall(index, parent.source.write_box(box, parent.within, parent.units)))
            except BoxError as error:
                raise CallError(str(error)) from None
        call = ToolCall(tuple(regions), given.inquiry)
        self._give_right(Turn(given.thought, call=call))
        self.carry_out(call, demand=given.demanded)

    def replay(self, conversation: Conversation) -> None:
        """Write a dialogue word by word, its crops as they were cut; raises InputError naming the message."""
        texts = conversation.inquiries
        self.trajectory.groups += [GroupInquiry(text, tuple(self.model.tokenize_inquiry(text))) for text in texts]
        frames, system, spoken = self.model.language_model.frames, "", False
        for number, message in enumerate(conversation.messages):
            try:
                if message.role == "system":
                    system = _text(message)
                elif message.role == "assistant":
                    self._say(_text(message), message.learned)
                else:
                    beginning = frames.following if spoken else self._headed(system)
                    self._show(beginning, message.content, conversation.groups)
                spoken = spoken or message.role == "user"
            except (CallError, ContextFull) as error:
                raise InputError(f"message {number}: {error}") from None

    def _show(self, beginning: str, content: Sequence[str | int], groups: Sequence[int]) -> None:
        """Write a user's message, originals in their places."""
        shown = [part for part in content if isinstance(part, int)]
        if unknown := [number for number in shown if not 0 <= number < len(self.sources)]:
            raise CallError(f"it shows image {unknown[0]}, and there are {len(self.sources)}.")
        placed = self._first_views([(n, which) for n in shown for which in range(len(self.sources[n].overviews()))])
        alone = [] if groups else [GroupInquiry()] * len(placed)
        before, (left, right) = len(self.trajectory.groups), self.model.dialogue.around
        of_region = [groups[each.source] if groups else before + n for n, each in enumerate(placed)]
        slots = iter(range(len(self.trajectory.regions), len(self.trajectory.regions) + len(placed)))
        pieces: list[str | Slot] = []
        for part in content:
            if isinstance(part, str):
                pieces.append(part)
                continue
            for _ in self.sources[part].overviews():
                pieces += [left, Slot(next(slots)), right]
        self._write([beginning, *pieces, self.model.language_model.frames.reply], placed, alone, of_region)

    def _say(self, text: str, learned: bool) -> None:
        """Write a message of the assistant's, as given rather than produced where it is not learned from."""
        language_model = self.model.language_model
        ids = [*language_model.tokenizer.encode(text), language_model.end_of_turn]
        if len(ids) > self.room:
            raise ContextFull(f"{len(ids)} tokens are needed and {self.room} remain.")
        if language_model.placeholder in ids:
            raise CallError("it holds the placeholder token, which is never a target.")
        self._record(self.model.dialogue.parse(text))
        (self.trajectory.add_produced if learned else self.trajectory.add_given)(ids)

    def _give_right(self, turn: Turn) -> None:
        """Give a turn that reads back as it was written, so that no tag or empty answer is taught."""
        problem = self.model.dialogue.parse(self.model.dialogue.write(turn)).problem
        if problem:
            raise CallError(problem)
        self.give(turn)


def _text(message: Message) -> str:
    """The words of a message that shows nothing; raises CallError."""
    if any(isinstance(part, int) for part in message.content):
        raise CallError(f"a message of role {message.role} cannot show images.")
    return "".join(part for part in message.content if isinstance(part, str))


def session_of(model: VisualChatModel, sample: Sample) -> GivenSession:
    """The session of a training sample: its sources opened, its trace written; raises InputError naming the sample."""
    try:
        if not sample.trace and sample.conversation is None:
            raise InputError("it has no trace to learn from.")
        sources = [model.open_source(original) for original in sample.originals]
        session = GivenSession(model, sources, sample.max_pixels, sample.max_turns)
        if sample.conversation is not None:
            session.replay(sample.conversation)
        else:
            session.open(sample.question, sample.tool)
            session.follow(sample.trace)
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from None
    return session
