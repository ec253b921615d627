"""Checks of a saved chat. A file that was edited or damaged must end in an error that names the fault.

Every invariant that the loop relies on is checked here: a wrong index would otherwise show up much later, as a
shape error or as an answer to other tokens than those shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from vilavt_toolkit.contracts import ShownRegion, Trajectory, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.utils.text import format_value


def read_decoding(data: Mapping[str, Any]) -> Decoding:
    """Read the decoding settings; raises ValueError or TypeError, and UsageError for values out of range."""
    for setting in fields(Decoding):
        expected, value = type(setting.default), data[setting.name]
        _require(
            type(value) is expected or (expected is float and type(value) is int), f"decoding.{setting.name} {value!r}"
        )
    return Decoding(**data)


def check_trajectory(trajectory: Trajectory) -> None:
    """Check what is true of every trajectory, whatever its model; raises ValueError."""
    count = len(trajectory.ids)
    _require(all(_is_count(token) for token in trajectory.ids), "ids")
    _require(len(trajectory.produced) == count and all(type(own) is bool for own in trajectory.produced), "produced")
    _require(len(trajectory.logprobs) == count and all(_is_number(p) for p in trajectory.logprobs), "logprobs")
    turns = len(trajectory.turns)
    _require(len(trajectory.starts) == turns and _is_increasing(trajectory.starts, count), "starts")
    _require(
        len(trajectory.feedback) == turns and all(isinstance(text, str) for text in trajectory.feedback), "feedback"
    )
    _require(all(_is_turn(turn) for turn in trajectory.turns), "turns")
    for question in trajectory.questions:
        _require(isinstance(question.text, str), "the text of a question")
        _require(
            _is_count(question.turn, turns + 1) and _is_count(question.start, count + 1),
            f"the place of {format_value(question.text)}",
        )
    _require(isinstance(trajectory.why, str) and type(trajectory.cut_short) is bool, "why")
    end = 0
    for number, region in enumerate(trajectory.regions):
        # Regions stand in order and do not overlap: features are scattered into the ids by these ranges.
        is_placed = _is_count(region.start) and _is_count(region.count) and end <= region.start
        _require(is_placed and _is_region(region, len(trajectory.groups)), f"region {number}")
        end = region.start + region.count
    _require(end <= count, "the last region")


def check_session(session: Session, originals: int) -> None:
    """Check what is true of every session of its model, apart from its sources; raises ValueError."""
    trajectory, language_model = session.trajectory, session.model.language_model
    _require(
        session.tokens_left >= 0,
        f"the number of ids ({len(trajectory.ids)}, of {language_model.context_length} at most)",
    )
    _require(_is_count(session.sources_shown, originals + 1), f"announced {session.sources_shown!r}")
    _require(_is_count(session.calls) and type(session.can_call_tool) is bool, "calls, or tool")
    for limit in (session.max_pixels, session.max_turns):
        _require(limit is None or (_is_count(limit) and limit > 0), f"a limit of {limit!r}")
    for group in trajectory.groups:
        _require(isinstance(group.text, str), "the text of an inquiry")
        # The encoder is given these ids, so they must be the text's own by the model that loads the chat.
        _require(
            list(group.ids) == session.model.tokenize_inquiry(group.text),
            f"the ids of inquiry {format_value(group.text)}",
        )
    for number, region in enumerate(trajectory.regions):
        _require(region.source < session.sources_shown, f"region {number}, of an original that was not shown,")
        ids = trajectory.ids[region.start : region.start + region.count]
        _require(set(ids) == {language_model.placeholder}, f"the place of region {number}")
    _check_tail(session)


def _check_tail(session: Session) -> None:
    """Check that the ids end in one of the two versions of the tail of an unanswered user turn; raises ValueError."""
    trajectory, tail = session.trajectory, session.tail
    if tail is None:
        return
    earliest = max([0, *(region.start + region.count for region in trajectory.regions), *trajectory.starts])
    _require(
        _is_count(tail.start, len(trajectory.ids) + 1) and tail.start >= earliest, f"tail, from {tail.start!r} on,"
    )
    # The next question replaces the tail by its text in one of two versions, which must be what stands there.
    ids = trajectory.ids[tail.start :]
    encode = session.model.language_model.tokenizer.encode
    texts = ["".join(str(piece) for piece in pieces) for pieces in (tail.plain, tail.demanding)]
    _require(any(encode(text) == ids for text in texts), "tail")


def check_regions(session: Session) -> None:
    """Check that regions name views that their sources have; raises ValueError."""
    for number, region in enumerate(session.trajectory.regions):
        source = session.sources[region.source]
        if region.box is None:
            is_known = region.overview < len(source.overviews()) and not region.shown.position
            _require(is_known, f"the overview of region {number}")
        else:
            sides = len(region.box) == len(source.extent) and all(_is_number(side) for side in region.box)
            sides = sides and len(region.shown.position) in (0, len(source.extent) // 2 * 2)
            _require(sides and all(math.isfinite(side) for side in region.box), f"the box of region {number}")


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be right")


def _is_count(value: object, end: int | None = None) -> bool:
    """Return True for a whole number from 0, below `end`."""
    # `type(...) is int`, since JSON's true and false are read as bool, which is an int too.
    return type(value) is int and value >= 0 and (end is None or value < end)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_increasing(values: Sequence[object], end: int) -> bool:
    last = -1
    for value in values:
        if not _is_count(value, end) or not isinstance(value, int) or value <= last:
            return False
        last = value
    return True


def _is_turn(turn: Turn) -> bool:
    is_right = all(isinstance(text, str) for text in (turn.thought, turn.problem))
    if turn.call is not None:
        regions = all(type(region.index) is int and isinstance(region.box, dict) for region in turn.call.regions)
        is_right = is_right and regions and isinstance(turn.call.inquiry, str)
    return is_right and (turn.answer is None or isinstance(turn.answer, str))


def _is_region(region: ShownRegion, groups: int) -> bool:
    has_grids = all(_is_count(side) for side in (*region.size, *region.grid))
    has_indices = _is_count(region.source) and _is_count(region.group, groups) and _is_count(region.overview)
    scale, count = region.shown.parent_scale, region.shown.overview_count
    has_scale = _is_number(scale) and math.isfinite(scale) and scale >= 0
    has_scale = has_scale and all(_is_number(edge) and math.isfinite(edge) for edge in region.shown.position)
    return has_grids and has_indices and has_scale and _is_count(count) and math.prod(region.grid) == region.count > 0
