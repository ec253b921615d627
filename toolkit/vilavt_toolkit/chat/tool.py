"""The zoom as a tool of the function-calling kind, for other agents than the chat's own model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.tool_calls import CallError, CallFormatError, read_call
from vilavt_toolkit.dialogue.writer import ContextFull
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.model_lock import eval_mode
from vilavt_toolkit.report.trace import TraceRegion, zoomed_regions

TOOL_NAME = "look_closer"
_MOST_REGIONS = 64
_MOST_PIXELS = 1 << 20
"""Stands for the side of a view in pixels, which differs from region to region."""
_ABOUT = (
    "Cuts regions out of the originals that were shown, enlarges them, and encodes them together with the query in "
    "mind; the answer to the next question may use what they show."
)


@dataclass(frozen=True)
class ToolResult:
    """The result of a call."""

    problem: str = ""
    """Reason why the call was rejected, in words for the agent; empty if it was carried out."""
    regions: tuple[TraceRegion, ...] = field(default=(), repr=False)
    """The regions that it shows, with crops."""
    shown: tuple[Mapping[str, Any], ...] = ()
    """For the agent, each region's index (for later calls), its original and its box there."""

    @property
    def content(self) -> str:
        """The result as JSON, to be sent back to the agent."""
        return json.dumps({"error": self.problem} if self.problem else {"regions": list(self.shown)})


def describe_tool(session: Session) -> dict[str, Any]:
    """Return the tool in the JSON schema of function calling, for the present originals; raises UsageError."""
    waiting = session.sources[session.sources_shown :]
    # A call shows the waiting originals first, so their overviews can be named in it.
    count = len(session.trajectory.regions) + sum(len(source.overviews()) for source in waiting)
    if not count:
        raise UsageError("the chat holds no image, so there is nothing to look at. Add one first with chat.add(image).")
    key, help = session.sources[0].box_key, session.sources[0].box_help
    steps = session.model.dialogue.units_per_side
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
    return {"type": "function", "function": {"name": TOOL_NAME, "description": _ABOUT, "parameters": parameters}}


def _box_properties(session: Session, key: str, about: str) -> dict[str, Any]:
    """Return the properties of a box in a call, as the first original describes them."""
    source, steps = session.sources[0], session.model.dialogue.units_per_side
    schema = source.box_schema(source.overviews()[0], steps or _MOST_PIXELS)
    if schema is None:
        return {key: {"type": "array", "items": {"type": "number"}, "description": about}}
    properties = {name: dict(value) for name, value in schema["properties"].items()}
    if not steps:
        # Boxes are in pixels of a view, and one schema serves all views: no largest value would be right for each.
        for value in properties.values():
            value["prefixItems"] = [
                {name: limit for name, limit in item.items() if name != "maximum"} for item in value["prefixItems"]
            ]
    properties[key]["description"] = about
    return properties


def carry_out_call(
    session: Session,
    arguments: str | Mapping[str, Any],
    transaction: AbstractContextManager[None],
    read_new_ids: Callable[[], None],
) -> ToolResult:
    """Carry out an agent's call in a session as if the model had written it, and let the model read what it shows.

    `transaction` undoes what happens inside it if an error passes through; `read_new_ids` fills the KV cache.
    """
    try:
        call = read_call(arguments if isinstance(arguments, str) else _call_as_json(arguments), _MOST_REGIONS)
        with transaction, eval_mode(session.model):
            # A model's turn must follow a user's turn. If none is open, or originals wait to be shown, an empty
            # question makes one. Else the open one goes on, without the demand to answer that may end it.
            needs_user_turn = session.fixed_length == len(session.trajectory.ids)
            if needs_user_turn or session.sources_shown < len(session.sources):
                session.try_ask("")
            else:
                session.remove_demand()
            first = len(session.trajectory.regions)
            session.add_given_turn(Turn("", call=call), produced=False)
            session.carry_out(call)
            read_new_ids()
            regions = zoomed_regions(session, range(first, len(session.trajectory.regions)))
    except (CallFormatError, CallError) as problem:
        return ToolResult(str(problem))
    except ContextFull as full:
        return ToolResult(f"It does not fit: {full}")
    return ToolResult("", regions, tuple(_describe_region(session, region) for region in regions))


def _call_as_json(arguments: Mapping[str, Any]) -> str:
    """Write a call as JSON; raises CallFormatError for values that JSON cannot hold."""
    # Parsed calls go through JSON as well, so that both kinds are checked by the same reader.
    try:
        return json.dumps(dict(arguments))
    except (TypeError, ValueError, RecursionError):
        raise CallFormatError("The tool call is not valid JSON.") from None


def _describe_region(session: Session, region: TraceRegion) -> dict[str, Any]:
    shown = session.trajectory.regions[region.index]
    return {"index": region.index, "original": shown.source, "box": list(region.box), "features": shown.count}
