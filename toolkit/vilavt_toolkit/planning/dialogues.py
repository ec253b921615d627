"""The dialogues that a plan is made for: samples of the recipe's task, or dialogues of a stated length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vilavt_toolkit.contracts import InquiryTokens, Region, ShownRegion, Task, Trajectory, View
from vilavt_toolkit.data.lengths import LengthMeter
from vilavt_toolkit.errors import InputError, UsageError

if TYPE_CHECKING:
    from vilavt_toolkit.models.model import VisualChatModel

DEFAULT_LENGTH = 16_384
"""Tokens of a dialogue where no data file is here, or as many as the language model reads."""
_MEASURED = 256
"""Samples of a split that are measured, spread evenly over it."""
_FEATURE_SHARE = 5 / 8
_WRITTEN_SHARE = 1 / 16
_CALLS, _REGIONS_OF_CALL = 4, 2
_INQUIRY_TOKENS = 20
_SIDE = 4096
"""Pixels of a side of the image that stands for all, more than any pixel budget of a view."""

Dialogue = tuple[Trajectory, list[View]]
"""A dialogue as the model is trained on it."""


@dataclass(frozen=True)
class PlannedDialogues:
    """Dialogues from the shortest to the longest, and where they are from."""

    dialogues: tuple[Dialogue, ...]
    """Evenly spread over all lengths, the longest included."""
    origin: str

    @property
    def lengths(self) -> list[int]:
        """Tokens of each dialogue."""
        return [len(trajectory.ids) for trajectory, _ in self.dialogues]


def measure_dialogues(model: VisualChatModel, task: Task, split: str, count: int, traces: bool) -> PlannedDialogues:
    """Return `count` dialogues of a split by even steps of length; raises InputError if the data cannot be read.

    With `traces` they are whole, else they are questions.
    """
    size = task.length(split)
    meter = LengthMeter(model, traces)
    numbers = sorted({index * size // _MEASURED for index in range(_MEASURED)})
    found: list[Dialogue] = []
    for number in numbers:
        session = meter.build_session(task.sample(split, number))
        if len(session.trajectory.ids) <= model.language_model.context_length:
            found.append((session.trajectory, session.views))
    if not found:
        raise InputError(f"split '{split}' has no sample that the model can take.")
    found.sort(key=lambda dialogue: len(dialogue[0].ids))
    # From the last one backwards, so that the longest is among them whatever the count.
    places = [round((len(found) - 1) * (index + 1) / count) if count > 1 else len(found) - 1 for index in range(count)]
    measured = f"{len(numbers):,} of {size:,} samples" if len(numbers) < size else f"all {size:,} samples"
    return PlannedDialogues(tuple(found[place] for place in places), f"{measured} of split '{split}'")


def invent_dialogues(model: VisualChatModel, length: int, count: int, written: int | None = None) -> PlannedDialogues:
    """Return `count` dialogues of `length` tokens, `written` of them the model's own (None: one in sixteen).

    Five in eight tokens are features of views of the encoder's whole pixel budget. The last eight views are shown on
    calls, two at a time and under an inquiry; all others are overviews. Raises UsageError if nothing fits.
    """
    if length > model.language_model.context_length:
        raise UsageError(
            f"--length {length:,} is more than the context of {model.language_model.context_length:,} tokens. Give a "
            "smaller one."
        )
    written = max(1, round(length * _WRITTEN_SHARE)) if written is None else min(written, length // 2)
    overview, zoom = _prepare_views(model)
    views, calls = _choose_views(model, overview, zoom, round(length * _FEATURE_SHARE))
    # The projector may join features, so that views take fewer tokens than patches.
    features = sum(model.feature_count(view.size) for view in views)
    if features + written >= length:
        raise UsageError(f"--length {length:,} holds no view of {features:,} tokens. Give a larger one.")
    trajectory = _write_dialogue(model, views, calls, length - features - written, written)
    return PlannedDialogues(((trajectory, views),) * count, f"--length {length:,}, {len(views)} views a dialogue")


def extend_dialogue(model: VisualChatModel, dialogue: Dialogue, written: int) -> Dialogue:
    """Return a question with two calls of two regions each after it, and `written` tokens of the model's own."""
    trajectory, views = dialogue[0].copy(), list(dialogue[1])
    _, zoom = _prepare_views(model)
    count = model.feature_count(zoom.size)
    room = model.language_model.context_length - len(trajectory.ids)
    # A call needs room for its regions and one written token, and three tokens stay for the end.
    calls = min(2, max(0, room - 3) // (_REGIONS_OF_CALL * count + 1))
    left = min(written, room - calls * _REGIONS_OF_CALL * count)
    for call in range(calls):
        part = left // (calls + 1 - call)
        trajectory.add_produced([model.language_model.end_of_turn] * part)
        left -= part
        _show_views(model, trajectory, [zoom] * _REGIONS_OF_CALL, _INQUIRY_TOKENS)
        views += [zoom] * _REGIONS_OF_CALL
    trajectory.add_produced([model.language_model.end_of_turn] * max(1, left))
    return trajectory, views


def _prepare_views(model: VisualChatModel) -> tuple[View, View]:
    """Return an overview and a zoom of the largest size; raises UsageError if the model looks at no images."""
    if model.vision.backbone.spec.modality != "image":
        raise UsageError("--length is for models of images. Give the recipe data files that are here.")
    # One byte, seen as a black image of any size.
    source = model.open_source(np.broadcast_to(np.uint8(0), (_SIDE, _SIDE, 3)))
    half = _SIDE // 2
    return model.prepare(Region(source)), model.prepare(Region(source, (0, 0, half, half)))


def _choose_views(model: VisualChatModel, overview: View, zoom: View, features: int) -> tuple[list[View], int]:
    """Return the views of about `features` features, and the number of calls that show the last ones."""
    of_overview, of_zoom = model.feature_count(overview.size), model.feature_count(zoom.size)
    calls = min(_CALLS, max(0, features - of_overview) // (_REGIONS_OF_CALL * of_zoom))
    overviews = max(1, (features - calls * _REGIONS_OF_CALL * of_zoom) // of_overview)
    return [overview] * overviews + [zoom] * (calls * _REGIONS_OF_CALL), calls


def _write_dialogue(model: VisualChatModel, views: Sequence[View], calls: int, given: int, written: int) -> Trajectory:
    """Return a trajectory: `given` tokens, overviews, then turns that call, the views of each, and a last turn."""
    trajectory, token = Trajectory(), model.language_model.end_of_turn
    trajectory.add_given([token] * given)
    overviews = len(views) - calls * _REGIONS_OF_CALL
    for view in views[:overviews]:
        _show_views(model, trajectory, [view], 0)
    for call in range(calls):
        trajectory.add_produced([token] * (written // (calls + 1)))
        first = overviews + call * _REGIONS_OF_CALL
        _show_views(model, trajectory, views[first : first + _REGIONS_OF_CALL], _INQUIRY_TOKENS)
    trajectory.add_produced([token] * (written - calls * (written // (calls + 1))))
    return trajectory


def _show_views(model: VisualChatModel, trajectory: Trajectory, views: Sequence[View], inquiry: int) -> None:
    """Add views of one inquiry group of so many tokens."""
    group = len(trajectory.groups)
    has_inquiry = model.vision.inquiry_encoder is not None
    trajectory.groups.append(InquiryTokens("", (0,) * inquiry if has_inquiry else ()))
    for view in views:
        count, grid = model.feature_count(view.size), model.feature_grid(view.size)
        region = ShownRegion(0, None, group, 0, count, view.size, grid=grid)
        trajectory.add_region(region, model.language_model.placeholder)
