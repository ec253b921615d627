"""A request: what the generation loop knows of one dialogue while it runs, and the phase that it is in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, Probe, StoppingPolicy, Usage
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.detokenizer import IncrementalDetokenizer
from vilavt_toolkit.generation.events import Demanded, LoopEvent
from vilavt_toolkit.generation.kv_cache import CachedPrefix
from vilavt_toolkit.generation.sampling import Constraint
from vilavt_toolkit.generation.shared_prompt import SharedPrompt


class Phase(Enum):
    """The one state of a request. The docstring of `turns` has the table of transitions.

    There are four ways of reading because they differ in what follows. Everything else follows from the phase: a
    draft exists while tokens are sampled, and ids wait to be read in the phases of reading.
    """

    READING = "reads the user's turn, then policies take a look"
    READING_PROBE = "reads the demand of a probe"
    READING_TURN = "reads the user's turn, and no look is due"
    READING_DEMAND = "reads the demand for the answer"
    PROBING = "samples the answer of a probe"
    WRITING = "samples a turn"
    ANSWERING = "samples the turn after the demand, which is the last one"
    ACTING = "does what the turn asks for"
    OVER = "has ended"


READING_PHASES = frozenset({Phase.READING, Phase.READING_PROBE, Phase.READING_TURN, Phase.READING_DEMAND})
SAMPLING_PHASES = frozenset({Phase.PROBING, Phase.WRITING, Phase.ANSWERING})
TRANSITIONS = {
    Phase.READING: {Phase.READING_TURN, Phase.READING_PROBE, Phase.READING_DEMAND, Phase.WRITING, Phase.OVER},
    Phase.READING_PROBE: {Phase.PROBING, Phase.OVER},
    Phase.READING_TURN: {Phase.WRITING, Phase.OVER},
    Phase.READING_DEMAND: {Phase.ANSWERING, Phase.OVER},
    Phase.PROBING: {Phase.READING_TURN, Phase.ANSWERING, Phase.OVER},
    Phase.WRITING: {Phase.ACTING},
    Phase.ANSWERING: {Phase.OVER},
    Phase.ACTING: {Phase.READING, Phase.READING_DEMAND, Phase.OVER},
    Phase.OVER: set[Phase](),
}
"""The phases that may follow each phase. An error leads from any phase to `OVER`."""


@dataclass
class TurnDraft:
    """A turn while it is sampled."""

    limit: int
    """Maximum number of tokens."""
    constraint: Constraint | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    detokenizer: IncrementalDetokenizer = field(default_factory=IncrementalDetokenizer)


@dataclass(frozen=True)
class ProbeContext:
    """Data that a probe keeps from the reading that came before it."""

    hidden: Tensor | None = None
    """The hidden state [D] before the demand, if a policy needs it."""
    first_logits: Tensor | None = None
    """Logits [V] of the first token after the demand, once that has been read."""


class Request:
    """One dialogue in the loop: its session, its row of the KV cache, its phase and the turn that it writes."""

    def __init__(
        self,
        session: Session,
        number: int = 0,
        seed: int = 0,
        prefix: CachedPrefix | None = None,
        emit: Callable[[LoopEvent], None] | None = None,
        prompt: SharedPrompt | None = None,
    ) -> None:
        # Data that outlives a phase. What a single phase needs is in `draft` or `probe_context`.
        self.session = session
        self.number = number
        """Its number among the dialogues of a run."""
        self.generator = torch.Generator().manual_seed(seed)
        self.prefix = prefix
        """The cached prefix that it continues and stores its row in; None: it starts empty and stores nothing."""
        self.emit = emit
        """Receives every event."""
        self.prompt = prompt
        """The prompt that it shares with its copies, until it has been read; None: it reads its own."""
        self.row = -1
        """Its row of the KV cache."""
        self.phase = Phase.READING
        self.draft: TurnDraft | None = None
        """The turn that is sampled; None outside the phases of sampling."""
        self.steps_waited = 0
        """Steps for which it has waited to be read."""
        self.error: Exception | None = None
        """The exception that ended it, if one did."""
        self.demand_reason = ""
        """The reason why the answer was demanded, which becomes the reason why the dialogue ended."""
        self.probe_context = ProbeContext()
        self.probes: list[Probe] = []
        """The answers probed so far."""
        self.features: list[Tensor] = []
        """The mean feature [D] of every user turn that showed regions."""
        self._started = time.perf_counter()

    # --- The phase -------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """True if the dialogue has ended, well or by an error."""
        return self.phase is Phase.OVER

    @property
    def is_reading(self) -> bool:
        """True if ids of the trajectory wait to be read."""
        return self.phase in READING_PHASES

    def enter(self, phase: Phase, draft: TurnDraft | None = None) -> None:
        """Change the phase; `draft` is the turn to sample in it. Raises RuntimeError for a forbidden transition."""
        is_failure = phase is Phase.OVER and self.error is not None
        if phase not in TRANSITIONS[self.phase] and not is_failure:
            raise RuntimeError(f"A request cannot go from {self.phase.name} to {phase.name}.")
        if (draft is not None) != (phase in SAMPLING_PHASES):
            raise RuntimeError(f"A request has a draft in {phase.name}, or lacks one.")
        self.phase, self.draft = phase, draft

    def finish(self, why: str, cut_short: bool = False) -> None:
        """End the dialogue for a reason; `cut_short` if the loop ended it and not the model."""
        self.enter(Phase.OVER)
        trajectory = self.session.trajectory
        trajectory.why, trajectory.cut_short = why, cut_short
        self.session.spent = self._usage_now()

    def fail(self, error: Exception) -> None:
        """End the dialogue because of an error of its own."""
        self.error = error
        self.finish(f"failed: {error}", cut_short=True)

    # --- Costs and events ------------------------------------------------------------------------------------------

    def add_usage(self, usage: Usage) -> None:
        """Add to the cost of the question."""
        self.session.spent = self.session.spent + usage

    def _usage_now(self) -> Usage:
        return replace(self.session.spent, seconds=time.perf_counter() - self._started)

    def emit_event(self, event: LoopEvent) -> None:
        """Pass an event to the listener, if there is one."""
        if self.emit is not None:
            self.emit(event)

    def note_demand(self, why: str) -> None:
        """Note that the answer is demanded, and why."""
        self.demand_reason = why
        self.emit_event(Demanded(why))

    # --- Policies --------------------------------------------------------------------------------------------------

    def state_after_turn(self, planned: Usage) -> LoopState:
        """Return what policies see after a turn; `planned` is the cost of carrying out its call."""
        return self._loop_state(planned)

    def state_at_look(self, hidden: Tensor | None) -> LoopState:
        """Return what policies see before a turn is written; `hidden` [D] is the last hidden state, if needed."""
        state = self._loop_state(Usage())
        return replace(state, before_turn=True, probes=tuple(self.probes), features=tuple(self.features), hidden=hidden)

    def _loop_state(self, planned: Usage) -> LoopState:
        session, trajectory = self.session, self.session.trajectory
        # Of a chat's earlier questions a policy sees nothing: its budget and its turns are those of one question.
        first = trajectory.questions[-1].turn if trajectory.questions else 0
        return LoopState(
            turns=tuple(trajectory.turns[first:]),
            calls=session.calls - session.calls_before,
            spent=self._usage_now(),
            planned=planned,
        )

    def ask_policies(self, policies: list[StoppingPolicy], state: LoopState) -> Decision:
        """Return the decision of the first policy that does not say go on; the sample's limit of turns comes last."""
        for policy in policies:
            decision = policy.decide(state)
            if decision.action != "go_on":
                return decision
        most = self.session.max_turns
        if most is not None and len(state.turns) >= most:
            return Decision("answer", f"the turns of its sample ({most}) are used up")
        return GO_ON
