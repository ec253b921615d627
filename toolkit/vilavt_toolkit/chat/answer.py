"""One question and its answer, with everything that happened on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from vilavt_toolkit.contracts import Trajectory
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.model_lock import eval_mode, model_lock
from vilavt_toolkit.report.trace import DrawnTurn, Trace, TraceRegion, draw_trace, render_trace, zoomed_regions
from vilavt_toolkit.vision.explain import Explanation


@dataclass(frozen=True, repr=False)
class Answer:
    """The answer to a question, how it was found, and what it cost; `print` shows the answer.

    In a notebook it is shown as the picture that `draw` makes.
    """

    text: str | None
    """None if the loop ended without an answer; `why` says why."""
    trace: Trace
    """Thoughts, inquiries, regions, crops."""
    why: str
    """Reason why the loop stopped."""
    cost: Mapping[str, float]
    """Turns, tokens read and written, regions, patches and features encoded, gflops, seconds: of this question only."""
    trajectory: Trajectory
    """The whole dialogue up to here."""
    session: Session = field(compare=False)
    """The dialogue that led to the answer, with its model; a copy, if the chat can go on."""

    def __str__(self) -> str:
        return self.text if self.text is not None else f"(no answer: {self.why})"

    def __repr__(self) -> str:
        # Without trace and trajectory, which hold pixels and thousands of ids.
        zooms = sum(len(turn.regions) for turn in self.trace.turns)
        return f"Answer({self.text!r}, why={self.why!r}, turns={len(self.trace.turns)}, zooms={zooms})"

    def _repr_png_(self) -> bytes:
        """Return the picture of the trace, as notebooks ask for it."""
        picture = BytesIO()
        render_trace(self.trace).save(picture, format="PNG")
        return picture.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Return answer, reason, question, turns and cost as plain data."""
        turns = [
            {
                "thought": turn.thought,
                "inquiry": turn.inquiry,
                "regions": [
                    {"index": region.index, "source": region.source_index, "box": list(region.box)}
                    for region in turn.regions
                ],
                "malformed": turn.malformed,
                "feedback": turn.feedback,
                "answer": turn.answer,
            }
            for turn in self.trace.turns
        ]
        sources = [source.name for source in self.trace.sources]
        return {
            "answer": self.text,
            "why": self.why,
            "question": self.trace.question,
            "sources": sources,
            "turns": turns,
            "cost": dict(self.cost),
        }

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
        """Return the encoder's attention in every region that has an inquiry, by the region's index.

        Encodes the regions once more. Raises InputError if no region has an inquiry, or no modulator attends to it.
        """
        model, trajectory = self.session.model, self.trajectory
        with_inquiry = [i for i, region in enumerate(trajectory.regions) if trajectory.groups[region.group].ids]
        if not with_inquiry:
            raise InputError("No region here was encoded under an inquiry. Ask a question that the model zooms for.")
        views = [self.session.views[index] for index in with_inquiry]
        groups = [trajectory.regions[index].group for index in with_inquiry]
        # Explaining records attention with hooks on the model, which another thread's forward must not run into.
        with eval_mode(model), model_lock(model):
            explanations = model.vision.explain_views(views, groups, [group.ids for group in trajectory.groups])
        return dict(zip(with_inquiry, explanations, strict=True))

    def draw(self, path: str | os.PathLike[str], explain: bool = False) -> None:
        """Draw the regions on the images, and the crops beside them, into a picture; raises InputError.

        With `explain`, heat maps on the crops show the encoder's attention.
        """
        draw_trace(self.trace, Path(path), self.explain() if explain else None)


def build_answer(session: Session, question: str | None = None) -> Answer:
    """Build the answer to the last question of a session that has run to its end.

    The trace shows `question` if it is given; else the words that the model was asked with.
    """
    trajectory = session.trajectory
    last_question, cost = trajectory.questions[-1], _count_cost(session)
    trace = Trace(
        last_question.text if question is None else question,
        tuple(session.sources),
        tuple(_trace_turns(session)),
        trajectory.why,
        cost,
    )
    # Without a turn since the question, the trajectory's answer is that to the question before.
    text = trajectory.answer if len(trajectory.turns) > last_question.turn else None
    return Answer(text, trace, trajectory.why, cost, trajectory, session)


def _count_cost(session: Session) -> dict[str, float]:
    trajectory, spent = session.trajectory, session.spent
    first = trajectory.questions[-1].start
    # `spent` begins at zero with each question. Turns and regions are those of the whole dialogue, so they are counted
    # from the question on.
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


def _trace_turns(session: Session) -> list[DrawnTurn]:
    """Return the turns of the last question, each with the regions that its call showed."""
    trajectory, last_question = session.trajectory, session.trajectory.questions[-1]
    first = next((n for n, region in enumerate(trajectory.regions) if region.start >= last_question.start), None)
    zooms = iter(zoomed_regions(session, range(first, len(trajectory.regions))) if first is not None else ())
    # The trajectory does not say which call a region belongs to. Calls were carried out in order, and the last call may
    # not have been: the loop can end before. So each call that was carried out takes its regions from the front.
    calls_left = session.calls - session.calls_before
    turns = []
    for number in range(last_question.turn, len(trajectory.turns)):
        turn, feedback = trajectory.turns[number], trajectory.feedback[number]
        regions: tuple[TraceRegion, ...] = ()
        if turn.call is not None and not feedback and calls_left > 0:
            # `zip` asks the call's own regions first, so that it takes no region too many.
            regions = tuple(region for _, region in zip(turn.call.regions, zooms, strict=False))
            calls_left -= 1
        inquiry = turn.call.inquiry if turn.call is not None else ""
        # Nobody answers the last turn of a dialogue, so that its problem is no feedback.
        malformed = session.read_turn_text(number) if turn.problem else ""
        turns.append(DrawnTurn(turn.thought, inquiry, regions, feedback or turn.problem, turn.answer, malformed))
    return turns
