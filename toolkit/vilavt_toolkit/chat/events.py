"""What happens while a question is answered, as `Chat.stream` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vilavt_toolkit.generation.events import LoopEvent

if TYPE_CHECKING:
    from vilavt_toolkit.chat.answer import Answer


@dataclass(frozen=True)
class Answered:
    """The question is over; always the last event."""

    answer: Answer


Event = LoopEvent | Answered
