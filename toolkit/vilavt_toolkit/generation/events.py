"""What happens while a question is answered, as `Chat.stream` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vilavt_toolkit.contracts import Probe, ToolCall

if TYPE_CHECKING:
    from vilavt_toolkit.report.trace import TraceRegion


@dataclass(frozen=True)
class Written:
    """The model wrote a token; `text` is what it adds, empty in the middle of a character."""

    text: str
    id: int
    logprob: float


@dataclass(frozen=True)
class Called:
    """The model's turn called the tool; it has not been carried out yet."""

    thought: str
    call: ToolCall


@dataclass(frozen=True)
class Looked:
    """A call was carried out: its regions with their crops."""

    inquiry: str
    regions: tuple[TraceRegion, ...]


@dataclass(frozen=True)
class Told:
    """A turn could not be carried out, and the model was told why."""

    problem: str


@dataclass(frozen=True)
class Probed:
    """A stopping policy asked what the answer would be now."""

    probe: Probe


@dataclass(frozen=True)
class Demanded:
    """A stopping policy, or the end of the context, demands the answer."""

    why: str


LoopEvent = Written | Called | Looked | Told | Probed | Demanded
