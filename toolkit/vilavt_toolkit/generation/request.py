"""A seat: what the loop knows of one dialogue while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, Probe, Spent, StoppingPolicy
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.detokenizer import Spelled
from vilavt_toolkit.generation.events import LoopEvent
from vilavt_toolkit.generation.kv_cache import Kept
from vilavt_toolkit.generation.sampling import Constraint


@dataclass
class Draft:
    """A turn while it is being written."""

    limit: int
    """Tokens that it may have."""
    probe: bool = False
    """Whether it only probes the answer, and may be taken back."""
    constraint: Constraint | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spelled: Spelled = field(default_factory=Spelled)


class Seat:
    """One dialogue in the loop: its session, its row of the cache, the turn it is writing."""

    def __init__(
        self,
        session: Session,
        number: int = 0,
        seed: int = 0,
        kept: Kept | None = None,
        emit: Callable[[LoopEvent], None] | None = None,
    ) -> None:
        self.session = session
        self.number = number
        """Among the dialogues of a run."""
        self.generator = torch.Generator().manual_seed(seed)
        self.kept = kept
        """What it has read before, which is also where what it reads is left; None: nothing, and it is forgotten."""
        self.emit = emit
        """Is told what happens."""
        self.row = -1
        """Its row of the cache."""
        self.draft: Draft | None = None
        self.waited = 0
        """Steps that it has been waiting to be read."""
        self.over = False
        self.error: Exception | None = None
        """What ended it, if something that should not have."""
        self.demanded = ""
        """Why the answer was demanded; empty while it was not."""
        self.look_due = True
        """Whether policies are still to be asked what they think of what was read last."""
        self.concluded = False
        """Whether the user's turn demands the answer for a probe only."""
        self.hidden: Tensor | None = None
        """The hidden state [D] behind which the turn that is being probed begins."""
        self.first_logits: Tensor | None = None
        """Logits [V] of the first token of the turn that is being probed."""
        self.probes: list[Probe] = []
        self.features: list[Tensor] = []
        """The mean feature [D] of what each user turn showed."""
        self._started = time.perf_counter()

    def spend(self, spent: Spent) -> None:
        """Add to what the question has cost."""
        self.session.spent = self.session.spent + spent

    def tell(self, event: LoopEvent) -> None:
        """Tell of an event whoever listens."""
        if self.emit is not None:
            self.emit(event)

    def end(self, why: str, cut_short: bool = False) -> None:
        """Let the dialogue be over, for a reason."""
        self.over = True
        trajectory = self.session.trajectory
        trajectory.why, trajectory.cut_short = why, cut_short
        self.session.spent = self._timed()

    def fail(self, error: Exception) -> None:
        """Let the dialogue be over because of an error of its own."""
        self.error = error
        self.end(f"failed: {error}", cut_short=True)

    def _timed(self) -> Spent:
        return replace(self.session.spent, seconds=time.perf_counter() - self._started)

    def state(self, planned: Spent = Spent(), look: bool = False, hidden: Tensor | None = None) -> LoopState:
        """What policies see of it: all since the last question."""
        session, trajectory, spent = self.session, self.session.trajectory, self._timed()
        first = trajectory.questions[-1].turn if trajectory.questions else 0
        probes, features = (tuple(self.probes), tuple(self.features)) if look else ((), ())
        return LoopState(
            turns=tuple(trajectory.turns[first:]),
            calls=session.calls - session.calls_before,
            spent=spent,
            planned=planned,
            look=look,
            probes=probes,
            features=features,
            hidden=hidden,
        )

    def decide(self, policies: list[StoppingPolicy], state: LoopState) -> Decision:
        """What the first policy says that does not say go on; a sample's own limit of turns counts last."""
        decisions = (policy.decide(state) for policy in policies)
        decision = next((decision for decision in decisions if decision.action != "go_on"), GO_ON)
        most = self.session.max_turns
        if decision.action == "go_on" and most is not None and len(state.turns) >= most:
            return Decision("answer", f"the turns of its sample ({most}) are used up")
        return decision
