"""A session: one dialogue as it grows. Training data and the generation loop build their trajectories through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

from vilavt_toolkit.contracts import (
    AnnouncedRegion,
    AskedQuestion,
    InquiryTokens,
    Region,
    Sample,
    ShownAs,
    Slot,
    Source,
    ToolCall,
    Usage,
)
from vilavt_toolkit.dialogue.prompt import Tail, frame_system_prompt, frame_user_text
from vilavt_toolkit.dialogue.tool_calls import (
    CallError,
    ParentRegion,
    PreparedCall,
    PreparedRegion,
    check_index,
    find_parent,
    resolve_region,
)
from vilavt_toolkit.dialogue.writer import ContextFull, TrajectoryWriter
from vilavt_toolkit.errors import InputError

if TYPE_CHECKING:
    from vilavt_toolkit.models.model import VisualChatModel

SHORTER = (
    "Set smaller views (model.encoder.overview_pixels, model.encoder.zoom_pixels), or choose a language model with a "
    "longer context."
)


class Mark(NamedTuple):
    """The state of a session at one moment, for `Session.roll_back`."""

    lengths: tuple[int, ...]
    """Length of every list of the trajectory."""
    view_count: int
    tail_ids: tuple[int, ...]
    """The ids that a further question or a demand can rewrite."""
    tail: Tail | None
    calls: int
    calls_before: int
    can_call_tool: bool
    sources_shown: int
    spent: Usage
    why: str
    cut_short: bool


class Session(TrajectoryWriter):
    """Holds the sources, views and trajectory of one dialogue. Every addition is made whole or not at all."""

    def __init__(
        self,
        model: VisualChatModel,
        sources: Sequence[Source],
        max_pixels: int | None = None,
        max_turns: int | None = None,
    ) -> None:
        super().__init__(model)
        self.sources = list(sources)
        self.max_pixels = max_pixels
        """Maximum pixels of a view, in addition to the encoder's own budget."""
        self.max_turns = max_turns
        """Turns without an answer after which the answer is demanded, in addition to the stopping policies."""
        self.calls = 0
        """Tool calls carried out in the whole dialogue."""
        self.can_call_tool = True
        """True if tool calls are carried out."""
        self.sources_shown = 0
        """Number of sources that have been shown."""
        self.spent = Usage()
        """Cost since the last question."""
        self.calls_before = 0
        """Tool calls carried out before the last question."""
        # `add_sources` prepares them to see that they fit. The question that follows takes them from here.
        self._prepared_overviews: tuple[list[Source], list[PreparedRegion]] = ([], [])
        """Sources that wait to be shown, and their overviews once these are prepared."""

    # --- Marks -----------------------------------------------------------------------------------------------------

    def save_mark(self) -> Mark:
        """Return the present state, for `roll_back`."""
        trajectory = self.trajectory
        return Mark(
            lengths=tuple(len(value) for value in self._trajectory_lists()),
            view_count=len(self.views),
            # Lists only grow, so their lengths are enough. The tail is the one place that is rewritten.
            tail_ids=tuple(trajectory.ids[self.fixed_length :]),
            tail=self.tail,
            calls=self.calls,
            calls_before=self.calls_before,
            can_call_tool=self.can_call_tool,
            sources_shown=self.sources_shown,
            spent=self.spent,
            why=trajectory.why,
            cut_short=trajectory.cut_short,
        )

    def roll_back(self, mark: Mark) -> None:
        """Remove everything that was added after `mark`. Sources stay, and wait to be shown again."""
        for value, length in zip(self._trajectory_lists(), mark.lengths, strict=True):
            del value[length:]
        del self.views[mark.view_count :]
        self.trajectory.why, self.trajectory.cut_short = mark.why, mark.cut_short
        self.calls, self.calls_before = mark.calls, mark.calls_before
        self.can_call_tool, self.sources_shown = mark.can_call_tool, mark.sources_shown
        self.spent, self.tail = mark.spent, mark.tail
        # After the tail is restored, `fixed_length` is again where its ids begin.
        self._truncate_ids(self.fixed_length)
        self.trajectory.add_given(mark.tail_ids)

    def _trajectory_lists(self) -> list[list[object]]:
        values = (getattr(self.trajectory, item.name) for item in fields(self.trajectory))
        return [value for value in values if isinstance(value, list)]

    def copy(self) -> Session:
        """Return an independent session with the same content. Sources and views are read-only and shared."""
        other = Session(self.model, self.sources, self.max_pixels, self.max_turns)
        other.trajectory, other.views = self.trajectory.copy(), list(self.views)
        other.calls, other.can_call_tool, other.sources_shown = self.calls, self.can_call_tool, self.sources_shown
        other.spent, other.calls_before = self.spent, self.calls_before
        other.tail, other._prepared_overviews = self.tail, self._prepared_overviews
        return other

    # --- The user's turns ------------------------------------------------------------------------------------------

    def add_sources(self, *added: Source) -> None:
        """Add sources, to be shown with the next question. Raises InputError if they do not fit; none is added then."""
        if not added:
            return
        # An empty question measures the least that must fit: the images, with the text around them.
        before = len(self.sources)
        self.sources.extend(added)
        try:
            regions = self._prepare_waiting_overviews()
            needed = self.count_text_tokens(self._question_pieces("", regions, True)) + self._count_features(regions)
            if needed > self.tokens_left:
                room = f"{needed} tokens are needed and {self.tokens_left} remain"
                what = f"{added[0].name} does" if len(added) == 1 else f"{len(added)} images do"
                raise InputError(f"{what} not fit: {room}. {SHORTER}")
        except BaseException:
            del self.sources[before:]
            raise

    def ask(self, question: str, tool: bool = True) -> None:
        """Write a question after the overviews of every source not shown yet. Raises InputError if it does not fit."""
        try:
            self.try_ask(question, tool)
        except ContextFull as full:
            raise InputError(f"the question does not fit: {full} Shorten it or show fewer images.") from None

    def try_ask(self, question: str, tool: bool = True) -> None:
        """Write a question as `ask` does. Raises ContextFull if it does not fit, InputError if it is not text."""
        _check_text(question)
        regions, mark = self._prepare_waiting_overviews(), self.save_mark()
        before = self._reopen_user_turn()
        start = len(self.trajectory.ids)
        # Both versions are made now: only here is it known what the turn holds before its tail.
        words = self.protect(question)
        opening = self._question_pieces(words, regions, tool, before)
        demanding = self._question_pieces(words, regions, tool, before, demand=True)
        try:
            self._write_user_turn(opening, regions, *self._overview_groups(len(regions)), demanding=demanding)
        except ContextFull:
            # The tail of the turn before was already removed, and must come back.
            self.roll_back(mark)
            raise
        self.can_call_tool, self.sources_shown = tool, len(self.sources)
        # Budgets of policies are per question. What earlier questions have read is kept, and costs nothing again.
        self.spent, self.calls_before = Usage(), self.calls
        self.trajectory.questions.append(AskedQuestion(question, len(self.trajectory.turns), start))
        self.trajectory.why, self.trajectory.cut_short = "", False

    def _reopen_user_turn(self) -> tuple[str, ...]:
        """Remove the tail of an unanswered user turn and return its text, to continue that turn."""
        if self.tail is None:
            return ()
        self._truncate_ids(self.tail.start)
        return self.tail.text_to_continue()

    def _question_pieces(
        self,
        question: str,
        regions: Sequence[PreparedRegion],
        tool: bool,
        before: Sequence[str | Slot] = (),
        demand: bool = False,
    ) -> list[str | Slot]:
        """Return the user turn of a question, after what the turn already holds."""
        # The question may continue a turn of the user (`before`), follow one of the model, or open the dialogue.
        template = self.model.language_model.turn_template
        beginning = before or [template.following if self.trajectory.ids else self._conversation_start(tool)]
        opening = self.model.dialogue.opening(question, self._announce_regions(regions), tool and not demand)
        return [*beginning, *opening, template.reply]

    def _prepare_waiting_overviews(self) -> list[PreparedRegion]:
        """Prepare the overviews of every source that was not shown yet."""
        waiting = self.sources[self.sources_shown :]
        known = self._prepared_overviews[0]
        # Preparing a view costs a resize, and `add_sources` has already done it for the question that follows.
        if len(known) != len(waiting) or any(one is not other for one, other in zip(known, waiting, strict=True)):
            indices = range(self.sources_shown, len(self.sources))
            self._prepared_overviews = waiting, self._prepare_overviews(indices)
        return self._prepared_overviews[1]

    def _prepare_overviews(self, source_indices: Sequence[int]) -> list[PreparedRegion]:
        """Prepare all overviews of these sources, which are shown together."""
        chosen = [(index, which) for index in source_indices for which in range(len(self.sources[index].overviews()))]
        prepared = []
        for index, which in chosen:
            shown = ShownAs(overview_count=len(chosen))
            region = Region(self.sources[index], overview=which, shown=shown, max_pixels=self.max_pixels)
            prepared.append(PreparedRegion(index, region, self.model.prepare(region)))
        return prepared

    def _overview_groups(self, count: int) -> tuple[list[InquiryTokens], list[int]]:
        """Return the inquiry groups of `count` overviews, and the group of each."""
        if self.model.dialogue.overviews_together:
            return [InquiryTokens()] * (count > 0), [0] * count
        return [InquiryTokens()] * count, list(range(count))

    def _conversation_start(self, tool: bool) -> str:
        """Return the text before the first user turn's content, with the system prompt if the tool may be used."""
        system = self.protect(self.model.dialogue.instructions(self.sources)) if tool else ""
        return frame_system_prompt(self.model.language_model.turn_template, system)

    def _announce_regions(self, regions: Sequence[PreparedRegion]) -> list[AnnouncedRegion]:
        """Return the next regions as the dialogue announces them."""
        announced = []
        for index, (_, region, view) in enumerate(regions, len(self.trajectory.regions)):
            label, extent = region.source.label(region.extent), self.model.vision.backbone.extent(view)
            announced.append(
                AnnouncedRegion(index, region.source, view.size, region.box is None, label=label, extent=extent)
            )
        return announced

    # --- Replies to the model's turns ------------------------------------------------------------------------------

    def carry_out(self, call: ToolCall, reserve: int = 0, demand: bool = False) -> None:
        """Cut and show the regions of a call; with `demand`, the same user turn demands the answer.

        Raises CallError, and ContextFull if fewer than `reserve` tokens would remain.
        """
        self.show_regions(self.prepare_call(call), reserve, demand)

    def prepare_call(self, call: ToolCall) -> PreparedCall:
        """Prepare the regions of a call without adding anything. Raises CallError."""
        if not self.can_call_tool:
            raise CallError("The tool cannot be used here.")
        found: list[tuple[int, Region]] = []
        for number, named in enumerate(call.regions):
            check_index(number, named.index, len(self.trajectory.regions))
            parent = self.find_parent(named.index)
            found.append((parent.source_index, resolve_region(number, named, parent, self.max_pixels)))
        try:
            # All boxes are checked before the first crop is cut, since cutting is the expensive part.
            regions = tuple(PreparedRegion(index, region, self.model.prepare(region)) for index, region in found)
        except InputError as error:
            raise CallError(str(error)) from None
        inquiry = InquiryTokens(call.inquiry, tuple(self.model.tokenize_inquiry(call.inquiry)))
        template, dialogue = self.model.language_model.turn_template, self.model.dialogue
        observation = dialogue.observation(self._announce_regions(regions), self.protect(call.inquiry))
        closing = dialogue.observation_with_demand(observation)
        return PreparedCall(
            regions,
            inquiry,
            pieces=(template.following, *observation, template.reply),
            demanding=(template.following, *closing, template.reply),
        )

    def find_parent(self, index: int) -> ParentRegion:
        """Return a shown region as one that boxes are relative to."""
        return find_parent(self.model, self.sources, self.trajectory, self.views, index)

    def show_regions(self, call: PreparedCall, reserve: int = 0, demand: bool = False) -> None:
        """Show the regions of a call that was prepared in the present state. Raises ContextFull."""
        groups = [len(self.trajectory.groups)] * len(call.regions)
        self._write_user_turn(call.pieces, call.regions, [call.inquiry], groups, reserve, call.demanding, demand)
        self.calls += 1

    def add_feedback(self, problem: str, reserve: int = 0, demand: bool = False) -> None:
        """Write why the last turn was rejected; with `demand`, demand the answer too. Raises ContextFull."""
        template, dialogue = self.model.language_model.turn_template, self.model.dialogue
        words = self.protect(problem)  # it may repeat what the model wrote
        plain = frame_user_text(template, dialogue.feedback(words))
        demanding = frame_user_text(template, dialogue.feedback(f"{words}\n{dialogue.demand()}"))
        self._write_user_turn(plain, [], [], [], reserve, demanding, demand)
        self.trajectory.feedback[-1] = problem

    def demand_answer(self) -> None:
        """Write a user turn that only demands the answer. Raises ContextFull."""
        text = frame_user_text(self.model.language_model.turn_template, self.model.dialogue.demand())
        self._write_user_turn(text, [], [], [], reserve=1)


def _check_text(question: object) -> None:
    """Raise InputError if a question is not text that a tokenizer can encode."""
    if not isinstance(question, str):
        raise InputError(f"a question must be a text, not {type(question).__name__}. Pass a string.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        reason = f"{error.reason} at {error.start}"
        raise InputError(f"the question is no valid text ({reason}). Remove the characters from there on.") from None


def session_for(model: VisualChatModel, sample: Sample, images: bool = True) -> Session:
    """Return a session of a sample's sources, or of none, in which nothing has been said. Raises InputError."""
    sources = [model.open_source(original) for original in sample.originals] if images else []
    return Session(model, sources, sample.max_pixels, sample.max_turns)


def ask_sample(model: VisualChatModel, sample: Sample) -> Session:
    """Return a session in which a sample's question was asked; raises InputError with the sample's id."""
    try:
        session = session_for(model, sample)
        session.ask(sample.question, sample.tool)
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from None
    return session
