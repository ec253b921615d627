"""Helpers that several stopping policies use to read the state of the loop."""

from __future__ import annotations

from typing import Literal

from vilavt_toolkit.contracts import LoopState


def has_answered(state: LoopState) -> bool:
    """Return True if the last turn is an answer."""
    return bool(state.turns) and state.turns[-1].answer is not None


def choose_ending(state: LoopState) -> Literal["answer", "stop"]:
    """Return the action that ends a dialogue: stop if the last turn already answers, else demand the answer."""
    # Demanding it again would pay for another turn, and could change an answer that was given freely.
    return "stop" if has_answered(state) else "answer"
