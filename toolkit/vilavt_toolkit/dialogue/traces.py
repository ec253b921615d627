"""Training dialogues: traces and conversations, written into a session as if a model had led them.

A trace names its boxes in the coordinates of their sources. It is written in the dialogue's own grammar (`write_box`,
`Dialogue.write`) and then carried out through the same parsing (`read_box`) that the generation loop uses. This looks
like a detour. It guarantees that training and generation cannot diverge: a model only learns turns that the loop
can carry out, and it sees the regions that the loop would show, down to the rounding of their boxes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

from vilavt_toolkit.contracts import (
    Conversation,
    InquiryTokens,
    Message,
    RegionCall,
    Sample,
    Slot,
    ToolCall,
    TraceTurn,
    Turn,
)
from vilavt_toolkit.dialogue.prompt import frame_system_prompt
from vilavt_toolkit.dialogue.session import SHORTER, Session
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.dialogue.writer import ContextFull
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.vision.boxes import BoxError, shorten_value

_CUT = "Or set train.long_samples=cut, which leaves out the turns that do not fit."


class TraceSession(Session):
    """A session whose turns come from training data."""

    has_context = True
    """False if its trajectory may be longer than the model's context, to be cut to it afterwards."""

    @property
    def tokens_left(self) -> int:
        """Tokens that still fit into the context, if it counts."""
        return super().tokens_left if self.has_context else sys.maxsize

    def ask_for_trace(self, sample: Sample) -> None:
        """Ask the question of a sample and write its trace. Raises InputError."""
        demands = any(turn.demanded and not turn.boxes for turn in sample.trace[:1])
        self.ask(sample.question, sample.tool and not demands)
        self.write_trace(sample.trace, sample.tool)

    def write_trace(self, trace: Sequence[TraceTurn], tool: bool = True) -> None:
        """Write a whole trace, further questions with the tool or without. Raises InputError naming a wrong turn."""
        for number, turn in enumerate(trace):
            try:
                self._write_trace_turn(turn, tool)
            except ContextFull as full:
                raise InputError(f"turn {number} of the trace: {full} {SHORTER} {_CUT}") from None
            except CallError as error:
                raise InputError(
                    f"turn {number} of the trace: {error} Correct the trace or remove the sample."
                ) from None

    def _write_trace_turn(self, given: TraceTurn, tool: bool) -> None:
        if given.question:
            if self.trajectory.answer is None:
                raise CallError("its question comes before the last one was answered.")
            self.try_ask(given.question, tool)
        check_boxes_form(given.boxes)
        if bool(given.boxes) == (given.answer is not None):
            raise CallError("it must either name boxes or answer.")
        if not given.boxes:
            self._add_checked_turn(Turn(given.thought, answer=given.answer))
            return
        regions = []
        for index, box in given.boxes:
            shown_count = len(self.trajectory.regions)
            if not 0 <= index < shown_count:
                raise CallError(f"region {index} does not exist, since {shown_count} regions were shown.")
            parent = self.find_parent(index)
            if len(box) != len(parent.within):
                raise CallError(f"box {shorten_value(box)} must have {len(parent.within)} numbers, as its original's.")
            try:
                regions.append(RegionCall(index, parent.source.write_box(box, parent.within, parent.units)))
            except BoxError as error:
                raise CallError(str(error)) from None
        call = ToolCall(tuple(regions), given.inquiry)
        self._add_checked_turn(Turn(given.thought, call=call))
        # Its boxes are read back from what was written, not taken from the trace. See the module's docstring.
        self.carry_out(call, demand=given.demanded)

    def _add_checked_turn(self, turn: Turn, learned: bool = True) -> None:
        """Add a turn that parses back without a problem, so that no stray tag or empty answer is learned."""
        problem = self.model.dialogue.parse(self.model.dialogue.write(turn)).problem
        if problem:
            raise CallError(problem)
        self.add_given_turn(turn, learned)

    def write_conversation(self, conversation: Conversation) -> None:
        """Write a dialogue, word by word with its crops as they were cut, or led. Raises InputError naming the message.

        A conversation that is led is asked without the tool, as its replies show no zoom.
        """
        if conversation.led:
            self._lead_conversation(conversation.messages)
            return
        for inquiry in conversation.inquiries:
            self.trajectory.groups.append(InquiryTokens(inquiry, tuple(self.model.tokenize_inquiry(inquiry))))
        template, system, has_user_turn = self.model.language_model.turn_template, "", False
        for number, message in enumerate(conversation.messages):
            try:
                if message.role == "system":
                    # Held back: it is part of the text that opens the first user turn.
                    system = self.protect(_text_of_message(message))
                elif message.role == "assistant":
                    text = _text_of_message(message)
                    self._add_turn_text(self.model.dialogue.parse(text), text, message.learned)
                else:
                    beginning = template.following if has_user_turn else frame_system_prompt(template, system)
                    self._write_user_message(beginning, message.content, conversation.groups)
                has_user_turn = has_user_turn or message.role == "user"
            except ContextFull as full:
                raise InputError(f"message {number}: {full} Shorten it or remove the sample. {_CUT}") from None
            except CallError as error:
                raise InputError(f"message {number}: {error} Shorten or correct it, or remove the sample.") from None

    def _lead_conversation(self, messages: Sequence[Message]) -> None:
        """Ask the questions of a conversation, and write its replies as answers. Raises InputError."""
        # `ask` shows all sources that were not shown yet, so each is added with the message that shows it.
        given, self.sources = self.sources, []
        for number, message in enumerate(messages):
            text = "".join(part for part in message.content if isinstance(part, str))
            try:
                if message.role == "user":
                    self.sources += [given[part] for part in message.content if isinstance(part, int)]
                    self.ask(text, tool=False)
                elif message.role == "assistant":
                    self._add_checked_turn(self._read_reply(text), message.learned)
            except ContextFull as full:
                raise InputError(f"message {number}: {full} Shorten it or remove the sample. {_CUT}") from None
            except (CallError, InputError) as error:
                raise InputError(f"message {number}: {error} Shorten or correct it, or remove the sample.") from None

    def _read_reply(self, text: str) -> Turn:
        """Return a reply that is in the dialogue's form as it is, any other one as the answer of a turn."""
        turn = self.model.dialogue.parse(text)
        return turn if turn.answer is not None and not turn.problem else Turn(answer=text.strip())

    def _write_user_message(self, beginning: str, content: Sequence[str | int], groups: Sequence[int]) -> None:
        """Write a user's message with its originals in place. `groups` holds the inquiry group of every original."""
        shown = [part for part in content if isinstance(part, int)]
        for index in shown:
            if not 0 <= index < len(self.sources):
                raise CallError(f"it shows image {index}, and there are {len(self.sources)}.")
        regions = self._prepare_overviews(shown)
        # Without groups of its own, a conversation encodes every view alone, under an empty inquiry.
        first_group, new_groups = len(self.trajectory.groups), [] if groups else [InquiryTokens()] * len(regions)
        group_of_region = []
        for number, region in enumerate(regions):
            group_of_region.append(groups[region.source_index] if groups else first_group + number)
        left, right = self.model.dialogue.feature_delimiters
        slot, pieces = len(self.trajectory.regions), list[str | Slot]()
        for part in content:
            if isinstance(part, str):
                pieces.append(self.protect(part))
                continue
            for _ in self.sources[part].overviews():
                pieces += [left, Slot(slot), right]
                slot += 1
        reply = self.model.language_model.turn_template.reply
        self._write_user_turn([beginning, *pieces, reply], regions, new_groups, group_of_region)


def check_boxes_form(boxes: Any) -> None:
    """Check that the boxes of a trace's turn are pairs of a whole number and a box. Raises CallError."""
    # `boxes=(0, box)` without the outer pair of brackets is the likeliest slip, so its parts are looked at one by one.
    for entry in boxes if isinstance(boxes, list | tuple) else (boxes,):
        is_pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not is_pair or type(entry[0]) is not int or not _is_finite_box(entry[1]):
            raise CallError(
                f"{shorten_value(entry)} in its boxes is not a pair (index of a region already shown, box of finite "
                "numbers). Write boxes=((0, (x1, y1, x2, y2)),)."
            )


def _is_finite_box(box: Any) -> bool:
    # Real also holds NumPy's numbers, which tasks compute boxes from.
    return isinstance(box, list | tuple) and all(isinstance(edge, Real) and math.isfinite(edge) for edge in box)


def _text_of_message(message: Message) -> str:
    """Return the words of a message that shows nothing. Raises CallError if it shows an image."""
    if any(isinstance(part, int) for part in message.content):
        raise CallError(f"a message of role {message.role} cannot show images.")
    return "".join(part for part in message.content if isinstance(part, str))


def build_trace_session(model: VisualChatModel, sample: Sample, has_context: bool = True) -> TraceSession:
    """Return the session of a training sample, with its trace written. Raises InputError naming the sample.

    Without `has_context` it may become longer than the model's context.
    """
    try:
        # Samples for reinforcement learning and evaluation have neither, and are not written in advance.
        if not sample.trace and sample.conversation is None:
            raise InputError("it has no trace to learn from. Add one or remove the sample.")
        sources = [model.open_source(original) for original in sample.originals]
        session = TraceSession(model, sources, sample.max_pixels, sample.max_turns)
        session.has_context = has_context
        if sample.conversation is not None:
            session.write_conversation(sample.conversation)
        else:
            session.ask_for_trace(sample)
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from None
    return session
