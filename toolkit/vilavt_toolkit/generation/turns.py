"""The transitions of a request between tokens: turns begin, end and are answered, and policies are asked.

| phase | event | next phase | function |
| --- | --- | --- | --- |
| READING | the tool is off, so no look is due | READING_TURN | `before_read` |
| READING | a look with a probe is due, and its demand does not fit | READING_TURN | `before_read` |
| READING | a look with a probe is due | READING_PROBE | `before_read` |
| READING | read; the hidden state is kept, and the probe is due | READING_PROBE | `start_turn` |
| READING | read; policies go on | WRITING | `start_turn` |
| READING | read; the demand of the probe does not fit | WRITING | `start_turn` |
| READING | read; a policy demands the answer | READING_DEMAND | `_ask_policies` |
| READING | read; a policy stops, or its demand does not fit | OVER | `_ask_policies` |
| READING_PROBE | read | PROBING | `start_turn` |
| READING_TURN | read | WRITING | `start_turn` |
| READING_DEMAND | read | ANSWERING | `start_turn` |
| READING, READING_PROBE, READING_TURN, READING_DEMAND | read; the context is full | OVER | `start_turn` |
| PROBING | the probe is complete; policies go on, and it is taken back | READING_TURN | `_finish_probe` |
| PROBING | a policy demands the answer (greedy: the probe; else: a new draft) | ANSWERING | `_finish_probe` |
| PROBING | a policy stops | OVER | `_finish_probe` |
| WRITING | the turn is complete | ACTING | `_finish_turn` |
| ANSWERING | the turn is complete | OVER | `_finish_answer` |
| ACTING | the reply is written | READING | `_answer_turn` |
| ACTING | the reply demands the answer | READING_DEMAND | `_answer_turn`, `_demand_in_rest` |
| ACTING | a policy stops, or no demand fits | OVER | `_finish_turn`, `_demand_in_rest` |
| any | an error of the dialogue | OVER | `Request.fail` |

`before_read` and `start_turn` stand around the prefill in `loop`, `add_token` stands after each sampled token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Concatenate, ParamSpec

from torch import Tensor

from vilavt_toolkit.contracts import Turn, Usage
from vilavt_toolkit.dialogue.tool_calls import CallError, PreparedCall
from vilavt_toolkit.dialogue.writer import ContextFull
from vilavt_toolkit.generation.events import Probed, RegionsShown, Rejected, TokenWritten, ToolCalled
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.generation.probing import read_probe
from vilavt_toolkit.generation.request import Phase, ProbeContext, Request, TurnDraft
from vilavt_toolkit.generation.sampling import Constraint, Decoding, StopCriteria
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import zoomed_regions

P = ParamSpec("P")
_CONTEXT_FULL = "the context is full"
_TRY_AGAIN = "You may look closer, or answer again."
"""Feedback on a well-formed turn after which a policy goes on. The model reads it."""


class Turns:
    """Moves requests from phase to phase. An error of one request ends that request alone."""

    def __init__(self, model: VisualChatModel, decoding: Decoding, costs: CostCounter) -> None:
        self._model, self._decoding, self._costs = model, decoding, costs
        self._policies = model.policies
        self.needs = frozenset[str]().union(*(policy.needs for policy in self._policies))
        """The needs of all policies at a look: `probe`, `features`, `hidden`."""
        language_model = model.language_model
        self._stops = StopCriteria(language_model.tokenizer, model.dialogue.stop_strings, language_model.end_of_turn)
        template = language_model.turn_template
        demand = language_model.tokenizer.encode(f"{template.following}{model.dialogue.demand()}{template.reply}")
        # A call must leave room for the demand and a short answer. A longest turn could be all of a short context.
        self._reserve = min(decoding.max_new_tokens, language_model.context_length // 8) + len(demand) + 1

    # --- Reading ---------------------------------------------------------------------------------------------------

    def before_read(self, request: Request) -> bool:
        """Choose what a request reads for, before it is read. Return False if that ended it."""
        _run_guarded(self._before_read, request)
        return not request.is_over

    def _before_read(self, request: Request) -> None:
        if request.phase is not Phase.READING:
            return
        if not request.session.can_call_tool:
            request.enter(Phase.READING_TURN)
            return
        # A hidden state must be read before the demand: after it, every state only shows that an answer comes.
        if "probe" in self.needs and "hidden" not in self.needs:
            start = self._demand_for_probe(request, None)
            if start is None:
                request.enter(Phase.READING_TURN)

    def _demand_for_probe(self, request: Request, hidden: Tensor | None) -> int | None:
        """Let the user's turn demand the answer. Return the index of the first new id, or None if it does not fit."""
        try:
            start = request.session.add_demand()
        except ContextFull:
            return None
        request.probe_context = ProbeContext(hidden)
        request.enter(Phase.READING_PROBE)
        return start

    def start_turn(self, request: Request, cache: KVCache, logits: Tensor, hidden: Tensor | None) -> None:
        """Let a request that has read everything sample its next turn, unless a policy decides otherwise.

        `logits` [V] follow the last id, `hidden` [D] is the hidden state there if a policy needs it.
        """
        _run_guarded(self._start_turn, request, cache, logits, hidden)

    def _start_turn(self, request: Request, cache: KVCache, logits: Tensor, hidden: Tensor | None) -> None:
        # The end-of-turn token is appended if it was not sampled, so one place of the context stays free for it.
        limit = min(self._decoding.max_new_tokens, request.session.tokens_left - 1)
        if limit <= 0:
            request.finish(_CONTEXT_FULL, cut_short=True)
            return
        match request.phase:
            case Phase.READING_PROBE:
                request.probe_context = replace(request.probe_context, first_logits=logits)
                request.enter(Phase.PROBING, self._draft_turn(request, limit, answer_only=True))
            case Phase.READING_DEMAND:
                request.enter(Phase.ANSWERING, self._draft_turn(request, limit, answer_only=True))
            case Phase.READING_TURN:
                request.enter(Phase.WRITING, self._draft_turn(request, limit))
            case _:
                if self._take_look(request, cache, hidden):
                    request.enter(Phase.WRITING, self._draft_turn(request, limit))

    def _take_look(self, request: Request, cache: KVCache, hidden: Tensor | None) -> bool:
        """Probe, or ask policies. Return True if the request goes on to write its turn."""
        if "probe" not in self.needs:
            return self._ask_policies(request, cache, hidden)
        start = self._demand_for_probe(request, hidden)
        if start is None:
            return True
        # The tail of the user's turn was read without the demand, and is read again with it.
        cache.truncate_row(request.row, start)
        return False

    def _ask_policies(self, request: Request, cache: KVCache, hidden: Tensor | None) -> bool:
        """Ask policies at a look. Return True if they go on."""
        decision = request.ask_policies(self._policies, request.state_at_look(hidden))
        if decision.action == "go_on":
            return True
        if decision.action == "stop":
            request.finish(decision.why)
            return False
        request.note_demand(decision.why)
        try:
            # The user's turn was read without the demand. Its tail is read again with it, and nothing else.
            cache.truncate_row(request.row, request.session.add_demand())
        except ContextFull:
            request.finish(decision.why, cut_short=True)
        else:
            request.enter(Phase.READING_DEMAND)
        return False

    def _draft_turn(self, request: Request, limit: int, answer_only: bool = False) -> TurnDraft:
        """Return an empty turn of at most `limit` tokens, constrained if the decoding has a grammar."""
        constraint: Constraint | None = None
        if self._decoding.grammar:
            from vilavt_toolkit.generation.constrained import turn_constraint

            constraint = turn_constraint(self._model, request.session, answer_only)
        return TurnDraft(limit, constraint)

    # --- Sampling --------------------------------------------------------------------------------------------------

    def add_token(self, request: Request, token: int, logprob: float, cache: KVCache) -> None:
        """Add a sampled token to a request's turn, and finish the turn if it is complete."""
        _run_guarded(self._add_token, request, token, logprob, cache)

    def _add_token(self, request: Request, token: int, logprob: float, cache: KVCache) -> None:
        draft = request.draft
        assert draft is not None
        draft.ids.append(token)
        draft.logprobs.append(logprob)
        if draft.constraint is not None:
            draft.constraint.accept_token(token)
        is_complete = len(draft.ids) >= draft.limit or self._stops.is_complete(draft.ids)
        # A probe may be taken back, so its tokens are not events.
        if request.emit is not None and request.phase is not Phase.PROBING:
            request.emit(TokenWritten(self._decode_token(draft, token, is_complete), token, logprob))
        if not is_complete:
            return
        match request.phase:
            case Phase.PROBING:
                self._finish_probe(request, draft, cache)
            case Phase.ANSWERING:
                self._finish_answer(request, draft)
            case _:
                self._finish_turn(request, draft)

    def _decode_token(self, draft: TurnDraft, token: int, is_complete: bool) -> str:
        """Return the text that a token adds to a turn; empty for the end-of-turn token."""
        language_model = self._model.language_model
        text = ""
        if token != language_model.end_of_turn:
            text = draft.detokenizer.add_token(token, language_model.tokenizer)
        return text + draft.detokenizer.flush() if is_complete else text

    def _finish_probe(self, request: Request, draft: TurnDraft, cache: KVCache) -> None:
        """Let policies see what the answer would be. It becomes the answer, or is taken back."""
        probe = read_probe(self._model, draft)
        request.probes.append(probe)
        request.emit_event(Probed(probe))
        decision = request.ask_policies(self._policies, request.state_at_look(request.probe_context.hidden))
        if decision.action == "answer":
            request.note_demand(decision.why)
            if self._decoding.temperature == 0:
                # A probe is greedy, and so is this turn: it would be written with the same tokens again.
                request.enter(Phase.ANSWERING, draft)
                self._finish_answer(request, draft)
                return
        written = len(request.session.trajectory.ids)
        flops = self._costs.reading_flops(len(draft.ids), written, len(draft.ids))
        request.add_usage(Usage(probed=len(draft.ids), flops=flops))
        if decision.action == "stop":
            request.finish(decision.why)
        elif decision.action == "answer":
            # A sampled answer is drawn again, from the logits that the probe began with.
            cache.truncate_row(request.row, written)
            request.enter(Phase.ANSWERING, self._draft_turn(request, draft.limit, answer_only=True))
        else:
            cache.truncate_row(request.row, request.session.remove_demand())
            request.enter(Phase.READING_TURN)

    # --- Acting ----------------------------------------------------------------------------------------------------

    def _finish_answer(self, request: Request, draft: TurnDraft) -> None:
        """Record the turn after the demand. Whatever it is, the dialogue is over."""
        self._record_turn(request, draft)
        request.finish(request.demand_reason, cut_short=True)

    def _finish_turn(self, request: Request, draft: TurnDraft) -> None:
        """Record a turn, ask policies, and do what it asks for."""
        request.enter(Phase.ACTING)
        turn = self._record_turn(request, draft)
        call, problem = self._prepare_call(request, turn)
        # Policies are asked once the call is prepared and before it is shown, so that a budget knows its exact cost.
        planned = self._estimate_usage(request, call)
        decision = request.ask_policies(self._policies, request.state_after_turn(planned))
        if decision.action == "stop":
            request.finish(decision.why)
            return
        is_last = decision.action == "answer"
        if is_last:
            request.note_demand(decision.why)
            if not decision.carry_out_call:
                call = None
        try:
            self._answer_turn(request, call, problem, is_last)
        except ContextFull:
            self._demand_in_rest(request)

    def _record_turn(self, request: Request, draft: TurnDraft) -> Turn:
        """Add a sampled turn to the trajectory and return it parsed."""
        session, written = request.session, len(draft.ids)
        # The logits of the first token are counted with the reading before it, hence one token less.
        flops = self._costs.reading_flops(written - 1, len(session.trajectory.ids), written - 1)
        request.add_usage(Usage(written=written, flops=flops))
        turn = session.add_sampled_turn(draft.ids, draft.logprobs)
        if turn.call is not None:
            request.emit_event(ToolCalled(turn.thought, turn.call))
        return turn

    def _prepare_call(self, request: Request, turn: Turn) -> tuple[PreparedCall | None, str]:
        """Return the call of a turn, prepared, or None and the feedback on what is wrong."""
        if turn.call is not None:
            try:
                return request.session.prepare_call(turn.call), ""
            except CallError as error:
                return None, str(error)
        return None, turn.problem or _TRY_AGAIN

    def _estimate_usage(self, request: Request, call: PreparedCall | None) -> Usage:
        """Return the cost of encoding and reading the regions of a call."""
        if call is None:
            return Usage()
        prefix = len(request.session.trajectory.ids)
        encoding = self._costs.encoding_cost(call.views, [0] * len(call.views))
        text = request.session.count_text_tokens(call.pieces)
        flops = encoding.flops + self._costs.reading_flops(encoding.features + text, prefix)
        return Usage(encoding.patches, encoding.features, text, flops=flops)

    def _answer_turn(self, request: Request, call: PreparedCall | None, problem: str, demand: bool) -> None:
        """Write the user's turn that answers the model's; raises ContextFull."""
        session = request.session
        if call is not None:
            first = len(session.trajectory.regions)
            session.show_regions(call, self._reserve, demand)
            # Crops for the listener cost a cut each, so they are made only for one.
            if request.emit is not None:
                regions = zoomed_regions(session, range(first, len(session.trajectory.regions)))
                request.emit(RegionsShown(call.inquiry.text, regions))
        elif problem:
            session.add_feedback(problem, self._reserve, demand)
            request.emit_event(Rejected(problem))
        else:
            # A policy refused a valid call. The model did nothing wrong, and words about it would cost tokens too.
            session.demand_answer()
        request.enter(Phase.READING_DEMAND if demand else Phase.READING)

    def _demand_in_rest(self, request: Request) -> None:
        """Demand the answer in what is left of the context, after the reply to a turn did not fit."""
        request.note_demand(_CONTEXT_FULL)
        try:
            request.session.demand_answer()
        except ContextFull:
            request.finish(_CONTEXT_FULL, cut_short=True)
        else:
            request.enter(Phase.READING_DEMAND)


def _run_guarded(
    act: Callable[Concatenate[Request, P], None], request: Request, *given: P.args, **named: P.kwargs
) -> None:
    """Act on one request. An exception ends that request and leaves the others of the batch alone."""
    try:
        act(request, *given, **named)
    except Exception as error:
        request.fail(error)
