"""One question about images, asked and answered, with everything that happened on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilavt_toolkit.chat.loop import Decoding, Loop
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.trajectory import Trajectory
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.report.trace import Trace, TraceRegion, TraceTurn, draw_trace
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
    """Turns, tokens read and written, regions and features encoded, seconds."""
    trajectory: Trajectory
    session: Session = field(repr=False, compare=False)
    """The dialogue that led to it, with its model."""

    def __str__(self) -> str:
        return self.text if self.text is not None else f"(no answer: {self.why})"

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
        with _evaluating(model):
            found = model.encoder.explain_views(views, groups, [group.ids for group in trajectory.groups])
        return dict(zip(asked, found, strict=True))

    def draw(self, path: str | os.PathLike[str], explain: bool = False) -> None:
        """Draw the regions on the images and the crops beside them into a picture; raises InputError.

        With `explain`, heat maps show what the encoder attended to in each region, as `explain` says.
        """
        draw_trace(self.trace, Path(path), self.explain() if explain else None)


@contextmanager
def _evaluating(model: VisualChatModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def ask(
    images: Any,
    question: str,
    *,
    model: VisualChatModel,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """Ask one question about one original or a list of them (paths, PIL images, uint8 arrays); raises InputError."""
    originals = list(images) if isinstance(images, list | tuple) else [images]
    started = time.perf_counter()
    session = Session(model, [model.open_source(original) for original in originals])
    session.open(question)
    with _evaluating(model):
        Loop(model, Decoding(max_new_tokens, temperature, seed)).run([session])
    return answer_of(session, question, time.perf_counter() - started)


def answer_of(session: Session, question: str, seconds: float | None = None) -> Answer:
    """The answer of a session that has run to its end."""
    trajectory = session.trajectory
    cost = _cost(session)
    if seconds is not None:
        cost["seconds"] = round(seconds, 3)
    sources = tuple(session.sources)
    trace = Trace(question, sources, tuple(_turns(session)), trajectory.why, cost)
    return Answer(trajectory.answer, trace, trajectory.why, cost, trajectory, session)


def _cost(session: Session) -> dict[str, float]:
    trajectory = session.trajectory
    features = sum(region.count for region in trajectory.regions)
    produced = sum(trajectory.produced)
    return {
        "turns": len(trajectory.turns),
        "tokens_read": len(trajectory.ids) - produced - features,
        "tokens_written": produced,
        "regions": len(trajectory.regions),
        "features": features,
    }


def _turns(session: Session) -> Sequence[TraceTurn]:
    trajectory = session.trajectory
    following = iter(index for index, region in enumerate(trajectory.regions) if region.box is not None)
    turns = []
    for turn, feedback in zip(trajectory.turns, trajectory.feedback, strict=True):
        regions: list[TraceRegion] = []
        if turn.call is not None and not feedback and session.calls:
            regions = [_region(session, index) for _, index in zip(turn.call.regions, following, strict=False)]
        inquiry = turn.call.inquiry if turn.call is not None else ""
        turns.append(TraceTurn(turn.thought, inquiry, tuple(regions), feedback, turn.answer))
    return turns


def _region(session: Session, index: int) -> TraceRegion:
    placed = session.trajectory.regions[index]
    source = session.sources[placed.source]
    assert placed.box is not None
    return TraceRegion(index, placed.source, source, placed.box, source.crop(placed.box).data)
