"""What happens between tokens: turns begin, end and are answered; policies are asked what they think of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec

from torch import Tensor

from vilavt_toolkit.contracts import Spent, Turn
from vilavt_toolkit.dialogue.session import ContextFull, Plan
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.generation.events import Called, Demanded, Looked, Probed, Told, Written
from vilavt_toolkit.generation.flops import Costs
from vilavt_toolkit.generation.kv_cache import KeyValues
from vilavt_toolkit.generation.probing import probe_of
from vilavt_toolkit.generation.request import Draft, Seat
from vilavt_toolkit.generation.sampling import Constraint, Decoding, Endings
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import looked_at

P = ParamSpec("P")
_CONTEXT_FULL = "the context is full"


class Turns:
    """The turns of seats, of one model under one way of decoding. What goes wrong in a seat ends that seat alone."""

    def __init__(self, model: VisualChatModel, decoding: Decoding, costs: Costs) -> None:
        self._model, self._decoding, self._costs = model, decoding, costs
        self._policies = model.policies
        self.needs = frozenset[str]().union(*(policy.needs for policy in self._policies))
        language_model = model.language_model
        self._endings = Endings(language_model.tokenizer, model.dialogue.stop_strings, language_model.end_of_turn)
        frames = language_model.frames
        demand = language_model.tokenizer.encode(f"{frames.following}{model.dialogue.demand()}{frames.reply}")
        # What a call must leave: the demand and a short answer. A whole longest turn could be all of a short context.
        self._reserve = min(decoding.max_new_tokens, language_model.context_length // 8) + len(demand) + 1

    # --- Beginning a turn ------------------------------------------------------------------------------------------

    def ready(self, seat: Seat) -> bool:
        """Whether a seat goes on; where its answer is to be probed, the user's turn demands it from now on."""
        seat.look_due = seat.look_due and seat.session.tool and not seat.demanded
        waits = "hidden" in self.needs and seat.hidden is None
        if seat.look_due and "probe" in self.needs and not seat.concluded and not waits:
            _guarded(self._conclude, seat)
        return not seat.over

    def _conclude(self, seat: Seat, cache: KeyValues | None = None) -> None:
        try:
            start = seat.session.conclude()
        except ContextFull:
            seat.look_due, seat.hidden = False, None
            return
        seat.concluded = True
        if cache is not None:
            cache.truncate(seat.row, start)

    def begin(self, seat: Seat, cache: KeyValues, logits: Tensor, hidden: Tensor | None) -> None:
        """Let a seat that has read everything write its next turn, unless a policy has it otherwise."""
        _guarded(self._begin, seat, cache, logits, hidden)

    def _begin(self, seat: Seat, cache: KeyValues, logits: Tensor, hidden: Tensor | None) -> None:
        limit = min(self._decoding.max_new_tokens, seat.session.room - 1)
        if limit <= 0:
            seat.end(_CONTEXT_FULL, cut_short=True)
            return
        if seat.look_due and "probe" in self.needs and not seat.concluded:
            # A hidden state is read before the demand, behind which it would tell of nothing but an answer.
            seat.hidden = hidden
            self._conclude(seat, cache)
            if seat.concluded:
                return
        if seat.concluded:
            seat.first_logits = logits
            seat.draft = Draft(limit, True, self._constraint(seat, answer_only=True))
        elif not seat.look_due or self._goes_on(seat, cache, hidden):
            seat.draft = Draft(limit, False, self._constraint(seat, answer_only=bool(seat.demanded)))

    def _goes_on(self, seat: Seat, cache: KeyValues, hidden: Tensor | None) -> bool:
        """Ask policies at a look; False where one ended it or demands the answer."""
        seat.look_due = False
        decision = seat.decide(self._policies, seat.state(look=True, hidden=hidden))
        if decision.action == "go_on":
            return True
        if decision.action == "stop":
            seat.end(decision.why)
            return False
        self._demanded(seat, decision.why)
        try:
            cache.truncate(seat.row, seat.session.conclude())
        except ContextFull:
            seat.end(decision.why, cut_short=True)
        return False

    def _constraint(self, seat: Seat, answer_only: bool) -> Constraint | None:
        if not self._decoding.grammar:
            return None
        from vilavt_toolkit.generation.constrained import turn_constraint

        return turn_constraint(self._model, seat.session, answer_only)

    # --- Writing a turn --------------------------------------------------------------------------------------------

    def add(self, seat: Seat, token: int, logprob: float, cache: KeyValues) -> None:
        """Add a token to a seat's turn, and finish the turn if that ends it."""
        _guarded(self._add, seat, token, logprob, cache)

    def _add(self, seat: Seat, token: int, logprob: float, cache: KeyValues) -> None:
        draft = seat.draft
        assert draft is not None
        draft.ids.append(token)
        draft.logprobs.append(logprob)
        if draft.constraint is not None:
            draft.constraint.accept(token)
        over = len(draft.ids) >= draft.limit or self._endings.complete(draft.ids)
        if seat.emit is not None and not draft.probe:
            seat.emit(Written(self._spelled(draft, token, over), token, logprob))
        if not over:
            return
        seat.draft = None
        if draft.probe:
            self._probed(seat, draft, cache)
        else:
            self._turn(seat, draft, cache)

    def _spelled(self, draft: Draft, token: int, over: bool) -> str:
        """The text that a token adds to a turn: none, if it is what ends it."""
        language_model = self._model.language_model
        text = "" if token == language_model.end_of_turn else draft.spelled.add(token, language_model.tokenizer)
        return text + draft.spelled.rest() if over else text

    def _probed(self, seat: Seat, draft: Draft, cache: KeyValues) -> None:
        """Let policies see what the answer would be: it is the answer, or it is taken back."""
        seat.concluded = seat.look_due = False
        probe = probe_of(self._model, draft)
        seat.probes.append(probe)
        seat.tell(Probed(probe))
        decision = seat.decide(self._policies, seat.state(look=True, hidden=seat.hidden))
        seat.hidden = None
        if decision.action == "answer":
            self._demanded(seat, decision.why)
            if self._decoding.temperature == 0:
                self._turn(seat, draft, cache)
                return
        written = len(seat.session.trajectory.ids)
        flops = self._costs.reading(len(draft.ids), written, len(draft.ids))
        seat.spend(Spent(probed=len(draft.ids), flops=flops))
        if decision.action == "stop":
            seat.end(decision.why)
        elif decision.action == "answer":
            cache.truncate(seat.row, written)
            seat.draft = Draft(draft.limit, False, self._constraint(seat, answer_only=True))
        else:
            cache.truncate(seat.row, seat.session.reopen())
            seat.first_logits = None

    # --- Ending a turn ---------------------------------------------------------------------------------------------

    def _turn(self, seat: Seat, draft: Draft, cache: KeyValues) -> None:
        """Record a turn and do what it asks."""
        session, written = seat.session, len(draft.ids)
        flops = self._costs.reading(written - 1, len(session.trajectory.ids), written - 1)
        seat.spend(Spent(written=written, flops=flops))
        turn = session.sampled(draft.ids, draft.logprobs)
        if turn.call is not None:
            seat.tell(Called(turn.thought, turn.call))
        if seat.demanded:
            seat.end(seat.demanded, cut_short=True)
            return
        plan, problem = self._planned(seat, turn)
        decision = seat.decide(self._policies, seat.state(self._cost_of(seat, plan)))
        if decision.action == "stop":
            seat.end(decision.why)
            return
        if decision.action == "answer":
            self._demanded(seat, decision.why)
            if not decision.call:
                plan = None
        try:
            self._reply(seat, plan, problem)
        except ContextFull:
            self._demand_for_room(seat)

    def _planned(self, seat: Seat, turn: Turn) -> tuple[Plan | None, str]:
        """What a turn asks for, made ready; or why it cannot be carried out."""
        if turn.call is not None:
            try:
                return seat.session.plan(turn.call), ""
            except CallError as error:
                return None, str(error)
        return None, turn.problem or "You may look closer, or answer again."

    def _cost_of(self, seat: Seat, plan: Plan | None) -> Spent:
        if plan is None:
            return Spent()
        views, behind = self._costs.views(plan.views, [0] * len(plan.views)), len(seat.session.trajectory.ids)
        text = seat.session.length(plan.pieces)
        flops = views.flops + self._costs.reading(views.features + text, behind)
        return Spent(views.patches, views.features, text, flops=flops)

    def _reply(self, seat: Seat, plan: Plan | None, problem: str) -> None:
        session, demand = seat.session, bool(seat.demanded)
        if plan is None and not problem:
            # A call that may not be carried out: the model did nothing wrong, and words about it cost too.
            session.demand()
        elif plan is None:
            session.feed_back(problem, self._reserve, demand)
            seat.tell(Told(problem))
        else:
            first = len(session.trajectory.regions)
            session.show(plan, self._reserve, demand)
            if seat.emit is not None:
                seat.emit(Looked(plan.inquiry.text, looked_at(session, range(first, len(session.trajectory.regions)))))
        seat.look_due = True

    def _demanded(self, seat: Seat, why: str) -> None:
        seat.demanded = why
        seat.tell(Demanded(why))

    def _demand_for_room(self, seat: Seat) -> None:
        """What the turn asked for does not fit: nothing of it was added; the answer is demanded in what is left."""
        self._demanded(seat, _CONTEXT_FULL)
        try:
            seat.session.demand()
        except ContextFull:
            seat.end(_CONTEXT_FULL, cut_short=True)


def _guarded(act: Callable[Concatenate[Seat, P], None], seat: Seat, *given: P.args, **named: P.kwargs) -> None:
    """Do something of one dialogue; what goes wrong there ends it alone."""
    try:
        act(seat, *given, **named)
    except Exception as error:
        seat.fail(error)
