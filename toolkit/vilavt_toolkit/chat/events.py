"""Events of `Chat.stream`: those of the generation loop, and the answer at the end. Import all of them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vilavt_toolkit.generation.events import (
    Demanded,
    LoopEvent,
    Probed,
    RegionsShown,
    Rejected,
    TokenWritten,
    ToolCalled,
)

if TYPE_CHECKING:
    from vilavt_toolkit.chat.answer import Answer

__all__ = ["Answered", "Demanded", "Event", "Probed", "RegionsShown", "Rejected", "TokenWritten", "ToolCalled"]


@dataclass(frozen=True)
class Answered:
    """The question is over; always the last event."""

    answer: Answer


Event = LoopEvent | Answered
