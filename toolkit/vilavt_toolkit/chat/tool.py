"""The re-encoding as a tool of the function-calling kind, for other agents than the chat's own model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.dialogue.session import ContextFull, Session
from vilavt_toolkit.dialogue.tool_calls import CallError, CallProblem, read_call
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.model_lock import evaluating
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.report.trace import TraceRegion, looked_at

if TYPE_CHECKING:
    from vilavt_toolkit.chat.chat import Chat

NAME = "look_closer"
_MOST_REGIONS = 64
_UNITS = 1 << 20
"""What a box may be at most where it is in pixels, whose number differs from region to region."""
_ABOUT = (
    "Cuts regions out of the originals that were shown, enlarges them, and encodes them together with the query in "
    "mind; the answer to the next question may use what they show."
)


@dataclass(frozen=True)
class ToolResult:
    """What came of a call."""

    problem: str = ""
    """Why it was not carried out, in words for the agent; empty where it was."""
    regions: tuple[TraceRegion, ...] = field(default=(), repr=False)
    """What it shows, with crops."""
    shown: tuple[Mapping[str, Any], ...] = ()
    """What may be said of each region: its index, for later calls, its original and its box there."""

    @property
    def content(self) -> str:
        """The result as JSON, to be sent back to the agent."""
        return json.dumps({"error": self.problem} if self.problem else {"regions": list(self.shown)})


def schema(session: Session) -> dict[str, Any]:
    """The tool as function calling describes it, for the originals at hand."""
    waiting = session.sources[session.announced :]
    count = len(session.trajectory.regions) + sum(len(source.overviews()) for source in waiting)
    if not count:
        raise UsageError("the chat holds no image, so there is nothing to look at; add one first.")
    key, help = session.sources[0].box_key, session.sources[0].box_help
    steps = session.model.dialogue.steps
    units = help[1].replace("{steps} steps", f"{steps} steps" if steps else "pixels of what was shown")
    region = {
        "type": "object",
        "properties": {
            "index": {"type": "integer", "minimum": 0, "maximum": count - 1, "description": "Which of those shown."},
            **_box_properties(session, key, f"{help[0]}; {units}"),
        },
        "required": ["index", key],
    }
    parameters = {
        "type": "object",
        "properties": {
            "region": {"type": "array", "items": region, "minItems": 1, "maxItems": _MOST_REGIONS},
            "query": {"type": "string", "description": "What is wanted to be known, in plain words; may be empty."},
        },
        "required": ["region", "query"],
    }
    return {"type": "function", "function": {"name": NAME, "description": _ABOUT, "parameters": parameters}}


def _box_properties(session: Session, key: str, about: str) -> dict[str, Any]:
    """The properties of a box in a call, as the first original says; in pixels without largest values, which differ."""
    source, steps = session.sources[0], session.model.dialogue.steps
    found = source.box_schema(source.overviews()[0], steps or _UNITS)
    if found is None:
        return {key: {"type": "array", "items": {"type": "number"}, "description": about}}
    properties = {name: dict(value) for name, value in found["properties"].items()}
    if not steps:
        for value in properties.values():
            value["prefixItems"] = [
                {name: limit for name, limit in item.items() if name != "maximum"} for item in value["prefixItems"]
            ]
    properties[key]["description"] = about
    return properties


def call(
    chat: Chat, arguments: str | Mapping[str, Any], whole: Callable[[], AbstractContextManager[None]]
) -> ToolResult:
    """Carry out a call, inside of `whole`, which takes back what fails."""
    session = chat.session
    try:
        wanted = read_call(arguments if isinstance(arguments, str) else _written(arguments), _MOST_REGIONS)
        with whole(), evaluating(chat.model):
            if session.announced < len(session.sources) or session.settled == len(session.trajectory.ids):
                session.begin("")
            else:
                session.reopen()
            first = len(session.trajectory.regions)
            session.give(Turn("", call=wanted), produced=False)
            session.carry_out(wanted)
            Loop(chat.model, chat.decoding).read(Seat(session, kept=chat.kept))
            regions = looked_at(session, range(first, len(session.trajectory.regions)))
    except (CallProblem, CallError) as problem:
        return ToolResult(str(problem))
    except ContextFull as full:
        return ToolResult(f"It does not fit: {full}")
    return ToolResult("", regions, tuple(_said(session, region) for region in regions))


def _written(arguments: Mapping[str, Any]) -> str:
    """A call as JSON; raises CallProblem for what JSON cannot hold."""
    try:
        return json.dumps(dict(arguments))
    except (TypeError, ValueError, RecursionError):
        raise CallProblem("The tool call is not valid JSON.") from None


def _said(session: Session, region: TraceRegion) -> dict[str, Any]:
    placed = session.trajectory.regions[region.index]
    return {"index": region.index, "original": placed.source, "box": list(region.box), "features": placed.count}
