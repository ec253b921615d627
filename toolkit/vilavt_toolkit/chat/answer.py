"""One question and its answer, with everything that happened on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vilavt_toolkit.contracts import Trajectory
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.model_lock import evaluating, exclusively
from vilavt_toolkit.report.trace import Trace, TraceRegion, TraceTurn, draw_trace, looked_at
from vilavt_toolkit.vision.explain import Explanation


@dataclass(frozen=True)
class Answer:
    """What a question led to; `print` shows the answer."""

    text: str | None
    """None where the loop ended without an answer; `why` says why."""
    trace: Trace
    """Thoughts, inquiries, regions, crops."""
    why: str
    """Why the loop stopped."""
    cost: Mapping[str, float]
    """Turns, tokens read and written, regions, patches and features encoded, operations, seconds: of this question."""
    trajectory: Trajectory
    """The whole dialogue up to here."""
    session: Session = field(repr=False, compare=False)
    """The dialogue that led to it, with its model; of a chat that goes on, as it was."""

    def __str__(self) -> str:
        return self.text if self.text is not None else f"(no answer: {self.why})"

    @property
    def logprobs(self) -> list[tuple[str, float]]:
        """Every token that the model wrote for this question, with its log-probability at the sampling temperature."""
        trajectory, tokenizer = self.trajectory, self.session.model.language_model.tokenizer
        first = trajectory.questions[-1].turn if trajectory.questions else 0
        start = trajectory.starts[first] if first < len(trajectory.starts) else len(trajectory.ids)
        return [
            (tokenizer.decode([trajectory.ids[index]]), trajectory.logprobs[index])
            for index in range(start, len(trajectory.ids))
            if trajectory.produced[index]
        ]

    def explain(self) -> dict[int, Explanation]:
        """What the encoder attended to in every region that has an inquiry, by the region's index.

        Encodes them once more. Raises InputError where there is none, or no modulator attends to inquiries.
        """
        model, trajectory = self.session.model, self.trajectory
        asked = [i for i, region in enumerate(trajectory.regions) if trajectory.groups[region.group].ids]
        if not asked:
            raise InputError("Nothing was encoded under an inquiry here, so there is nothing to explain.")
        views = [self.session.views[index] for index in asked]
        groups = [trajectory.regions[index].group for index in asked]
        with evaluating(model), exclusively(model):
            found = model.encoder.explain_views(views, groups, [group.ids for group in trajectory.groups])
        return dict(zip(asked, found, strict=True))

    def draw(self, path: str | os.PathLike[str], explain: bool = False) -> None:
        """Draw the regions on the images and the crops beside them into a picture; raises InputError.

        With `explain`, heat maps show what the encoder attended to, as `explain` says.
        """
        draw_trace(self.trace, Path(path), self.explain() if explain else None)


def answer_of(session: Session, question: str | None = None) -> Answer:
    """The answer to the last question of a session that has run to its end; a trace may name the question otherwise."""
    trajectory = session.trajectory
    asked, cost = trajectory.questions[-1], _cost(session)
    trace = Trace(
        asked.text if question is None else question,
        tuple(session.sources),
        tuple(_turns(session)),
        trajectory.why,
        cost,
    )
    answered = trajectory.answer if len(trajectory.turns) > asked.turn else None
    return Answer(answered, trace, trajectory.why, cost, trajectory, session)


def _cost(session: Session) -> dict[str, float]:
    trajectory, spent = session.trajectory, session.spent
    first = trajectory.questions[-1].start
    cost: dict[str, float] = {
        "turns": len(trajectory.turns) - trajectory.questions[-1].turn,
        "tokens_read": spent.read,
        "tokens_written": spent.written,
        "regions": sum(region.start >= first for region in trajectory.regions),
        "patches": spent.patches,
        "features": spent.features,
        "gflops": round(spent.flops / 1e9, 6),
        "seconds": round(spent.seconds, 3),
    }
    return cost | ({"tokens_probed": spent.probed} if spent.probed else {})


def _turns(session: Session) -> Sequence[TraceTurn]:
    """The turns of the last question."""
    trajectory, asked = session.trajectory, session.trajectory.questions[-1]
    first = next((n for n, region in enumerate(trajectory.regions) if region.start >= asked.start), None)
    made = looked_at(session, range(first, len(trajectory.regions))) if first is not None else ()
    following = iter(made)
    left = session.calls - session.calls_before
    turns = []
    said = zip(trajectory.turns[asked.turn :], trajectory.feedback[asked.turn :], strict=True)
    for turn, feedback in said:
        regions: tuple[TraceRegion, ...] = ()
        if turn.call is not None and not feedback and left > 0:
            regions = tuple(region for _, region in zip(turn.call.regions, following, strict=False))
            left -= 1
        inquiry = turn.call.inquiry if turn.call is not None else ""
        turns.append(TraceTurn(turn.thought, inquiry, regions, feedback, turn.answer))
    return turns
