"""Events of the generation loop while a question is answered. `Chat.stream` yields them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vilavt_toolkit.contracts import Probe, ToolCall

if TYPE_CHECKING:
    from vilavt_toolkit.report.trace import TraceRegion


@dataclass(frozen=True)
class TokenWritten:
    """The model wrote a token. `text` is the text that it completes, empty in the middle of a character."""

    text: str
    id: int
    logprob: float


@dataclass(frozen=True)
class ToolCalled:
    """The model's turn calls the tool. The call has not been carried out yet."""

    thought: str
    call: ToolCall


@dataclass(frozen=True)
class RegionsShown:
    """A call was carried out, and its regions are shown. They come with their crops."""

    inquiry: str
    regions: tuple[TraceRegion, ...]


@dataclass(frozen=True)
class Rejected:
    """A turn could not be carried out. `problem` is the feedback that the model reads."""

    problem: str


@dataclass(frozen=True)
class Probed:
    """The answer was probed for a stopping policy."""

    probe: Probe


@dataclass(frozen=True)
class Demanded:
    """The answer is demanded, by a stopping policy or because the context is full."""

    why: str


LoopEvent = TokenWritten | ToolCalled | RegionsShown | Rejected | Probed | Demanded
