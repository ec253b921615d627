"""Tool calls in JSON, as all dialogues write them: the regions and the query."""

from __future__ import annotations

import json
from typing import Any

from vilavt_toolkit.contracts import (
    RegionCall,
    ToolCall,
)


class CallProblem(Exception):
    """What is wrong with a tool call, in words for the model."""


def write_call(call: ToolCall) -> str:
    """A call as JSON on one line."""
    regions = [{"index": region.index, **region.box} for region in call.regions]
    return json.dumps({"region": regions, "query": call.inquiry}, ensure_ascii=False)


def read_call(body: str, max_regions: int) -> ToolCall:
    """Read a call; the inverse of `write_call`. Raises CallProblem."""
    try:
        call = json.loads(body)
        # NaN, Infinity and lone surrogates are read, but no file or tokenizer takes them.
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise CallProblem("The tool call is not valid JSON.") from None
    if not isinstance(call, dict) or set(call) != {"region", "query"}:
        raise CallProblem('The tool call must be an object with the keys "region" and "query".')
    regions, inquiry = call["region"], call["query"]
    if not isinstance(inquiry, str):
        raise CallProblem('"query" must be a text.')
    if not isinstance(regions, list) or not 1 <= len(regions) <= max_regions:
        raise CallProblem(f'"region" must be a list of 1 to {max_regions} regions.')
    return ToolCall(tuple(_read_region(number, region) for number, region in enumerate(regions)), inquiry)


def _read_region(number: int, region: Any) -> RegionCall:
    if not isinstance(region, dict) or "index" not in region:
        raise CallProblem(f'Region {number} must be an object with an "index" and a box.')
    index = region["index"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise CallProblem(f'"index" of region {number} must be a whole number.')
    return RegionCall(index, {key: value for key, value in region.items() if key != "index"})


class CallError(Exception):
    """Why a tool call cannot be carried out, in words for the model."""
