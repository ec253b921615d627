"""Whether a saved chat holds together: what was written by `saving` does; what was changed since may not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from vilavt_toolkit.contracts import PlacedRegion, Trajectory, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.sampling import Decoding


def read_decoding(data: Mapping[str, Any]) -> Decoding:
    """Read the settings of decoding; raises ValueError or TypeError, and UsageError for what makes no sense."""
    for setting in fields(Decoding):
        kind, value = type(setting.default), data[setting.name]
        _hold(type(value) is kind or (kind is float and type(value) is int), f"decoding.{setting.name} {value!r}")
    return Decoding(**data)


def check_trajectory(trajectory: Trajectory) -> None:
    """Hold what is true of every trajectory, whatever its model; raises ValueError."""
    count = len(trajectory.ids)
    _hold(all(_is_count(token) for token in trajectory.ids), "ids")
    _hold(len(trajectory.produced) == count and all(type(own) is bool for own in trajectory.produced), "produced")
    _hold(len(trajectory.logprobs) == count and all(_is_number(p) for p in trajectory.logprobs), "logprobs")
    turns = len(trajectory.turns)
    _hold(len(trajectory.starts) == turns and _rises(trajectory.starts, count), "starts")
    _hold(len(trajectory.feedback) == turns and all(isinstance(told, str) for told in trajectory.feedback), "feedback")
    _hold(all(_is_turn(turn) for turn in trajectory.turns), "turns")
    for asked in trajectory.questions:
        _hold(isinstance(asked.text, str), "the text of a question")
        _hold(_is_count(asked.turn, turns + 1) and _is_count(asked.start, count + 1), f"the place of {asked.text!r}")
    _hold(isinstance(trajectory.why, str) and type(trajectory.cut_short) is bool, "why")
    end = 0
    for number, region in enumerate(trajectory.regions):
        placed = _is_count(region.start) and _is_count(region.count) and end <= region.start
        _hold(placed and _is_region(region, len(trajectory.groups)), f"region {number}")
        end = region.start + region.count
    _hold(end <= count, "the last region")


def check_session(session: Session, originals: int) -> None:
    """Hold what is true of every session of its model, but for its sources; raises ValueError."""
    trajectory, language_model = session.trajectory, session.model.language_model
    _hold(session.room >= 0, f"the number of ids ({len(trajectory.ids)}, of {language_model.context_length} at most)")
    _hold(_is_count(session.announced, originals + 1), f"announced {session.announced!r}")
    _hold(_is_count(session.calls) and type(session.tool) is bool, "calls, or tool")
    for limit in (session.max_pixels, session.max_turns):
        _hold(limit is None or (_is_count(limit) and limit > 0), f"a limit of {limit!r}")
    for group in trajectory.groups:
        _hold(isinstance(group.text, str), "the text of an inquiry")
        _hold(list(group.ids) == session.model.tokenize_inquiry(group.text), f"the ids of inquiry {group.text!r}")
    for number, region in enumerate(trajectory.regions):
        _hold(region.source < session.announced, f"region {number}, of an original that was not shown,")
        there = trajectory.ids[region.start : region.start + region.count]
        _hold(set(there) == {language_model.placeholder}, f"the place of region {number}")
    _check_tail(session)


def _check_tail(session: Session) -> None:
    """Hold that the ids end in one version of what stands behind the last feature of an unanswered user turn."""
    trajectory, tail = session.trajectory, session.tail
    if tail is None:
        return
    behind = max([0, *(region.start + region.count for region in trajectory.regions), *trajectory.starts])
    _hold(_is_count(tail.start, len(trajectory.ids) + 1) and tail.start >= behind, f"tail, from {tail.start!r} on,")
    ids = trajectory.ids[tail.start :]
    encode = session.model.language_model.tokenizer.encode
    texts = ["".join(str(piece) for piece in pieces) for pieces in (tail.open, tail.closed)]
    _hold(any(encode(text) == ids for text in texts), "tail")


def check_regions(session: Session) -> None:
    """Hold that regions name views that their sources have; raises ValueError."""
    for number, region in enumerate(session.trajectory.regions):
        source = session.sources[region.source]
        if region.box is None:
            _hold(region.overview < len(source.overviews()), f"the overview of region {number}")
        else:
            sides = len(region.box) == len(source.extent) and all(_is_number(side) for side in region.box)
            _hold(sides and all(math.isfinite(side) for side in region.box), f"the box of region {number}")


def _hold(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be")


def _is_count(value: object, end: int | None = None) -> bool:
    """Whether it is a whole number from 0 on, below `end`."""
    return type(value) is int and value >= 0 and (end is None or value < end)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _rises(values: Sequence[object], end: int) -> bool:
    below = -1
    for value in values:
        if not _is_count(value, end) or not isinstance(value, int) or value <= below:
            return False
        below = value
    return True


def _is_turn(turn: Turn) -> bool:
    texts = all(isinstance(text, str) for text in (turn.thought, turn.problem))
    if turn.call is not None:
        regions = all(type(region.index) is int and isinstance(region.box, dict) for region in turn.call.regions)
        texts = texts and regions and isinstance(turn.call.inquiry, str)
    return texts and (turn.answer is None or isinstance(turn.answer, str))


def _is_region(region: PlacedRegion, groups: int) -> bool:
    grids = all(_is_count(side) for side in (*region.size, *region.grid))
    names = _is_count(region.source) and _is_count(region.group, groups) and _is_count(region.overview)
    scaled = _is_number(region.scale) and math.isfinite(region.scale) and region.scale >= 0
    return grids and names and scaled and _is_count(region.among) and math.prod(region.grid) == region.count > 0
