"""Rollouts as the loop would record them, from what a model might write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vilavt_toolkit.contracts import Sample, Turn
from vilavt_toolkit.dialogue.session import CallError, Session
from vilavt_toolkit.dialogue.trajectory import Trajectory

Play = Callable[[Sequence[str]], Trajectory]


@pytest.fixture
def play(tiny_model) -> Play:
    """Turn texts into a trajectory: parsed by the dialogue, calls carried out or refused, on one image of 64 x 64."""
    pixels = np.zeros((64, 64, 3), np.uint8)

    def played(texts: Sequence[str]) -> Trajectory:
        session = Session(tiny_model, [tiny_model.open_source(pixels)])
        session.open("what?")
        for text in texts:
            ids = tiny_model.language_model.tokenizer.encode(text)
            turn = session.sampled(ids, [0.0] * len(ids))
            if turn.call is not None:
                try:
                    session.carry_out(turn.call)
                except CallError as error:
                    session.feed_back(str(error))
            elif turn.problem:
                session.feed_back(turn.problem)
        return session.trajectory

    return played


@pytest.fixture
def answering() -> Callable[[str | None], Trajectory]:
    """A trajectory of one good turn with this answer."""

    def made(answer: str | None) -> Trajectory:
        return Trajectory(turns=[Turn("seen", answer=answer)], feedback=[""])

    return made


@pytest.fixture
def ask() -> Callable[..., Sample]:
    """A sample of a kind of answer, with this truth."""

    def made(kind: str, truth: str, **tags: object) -> Sample:
        return Sample("s1", "what?", truth, (), tags={"answer_kind": kind, **tags})

    return made
