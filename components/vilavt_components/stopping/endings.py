"""What several stopping policies read off the state of the loop."""

from __future__ import annotations

from typing import Literal

from vilavt_toolkit.contracts import LoopState


def answered(state: LoopState) -> bool:
    """Whether the last turn is an answer."""
    return bool(state.turns) and state.turns[-1].answer is not None


def ending(state: LoopState) -> Literal["answer", "stop"]:
    """How a dialogue ends whose means are used up: an answer that is there is not demanded again."""
    return "stop" if answered(state) else "answer"
