"""Boxes as answers: how one is read, and how much two of them overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vilavt_toolkit.utils.json_objects import load_unambiguous

RegionBox = tuple[int, tuple[float, ...]]
"""(index of the region that the box is in, coordinates: all lower sides, then all upper sides)"""

_MAX_LENGTH = 1000
"""A longer text is not read, so that parsing stays quick."""


def read_box(text: str) -> RegionBox | None:
    """Read a box: [x1, y1, x2, y2], or as in a tool call, {"index": 0, "bbox_2d": [..]}; None for anything else.

    A box without an index is in region 0. Boxes of more axes have all lower sides first.
    """
    if len(text) > _MAX_LENGTH:
        return None
    try:
        # Two boxes under one key are two guesses.
        value = load_unambiguous(text)
    except (ValueError, RecursionError):
        return None
    index = 0
    # The other key is the box, whatever its name: it differs between modalities (`bbox_2d`, `bbox_3d`).
    if isinstance(value, dict):
        given = value.pop("index", 0)
        if isinstance(given, bool) or not isinstance(given, int) or len(value) != 1:
            return None
        index, value = given, next(iter(value.values()))
    if not isinstance(value, list) or len(value) < 4 or len(value) % 2 or not all(map(_is_coordinate, value)):
        return None
    box = tuple(float(side) for side in value)
    low, high = box[: len(box) // 2], box[len(box) // 2 :]
    return (index, box) if all(a < b for a, b in zip(low, high, strict=True)) else None


def _is_coordinate(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of two boxes that are not empty, each all lower, then all upper sides.

    Boxes with different numbers of axes do not overlap: 0.
    """
    if len(first) != len(second):
        return 0.0
    axes = len(first) // 2
    shared = math.prod(
        # Without the clamp two negative extents would multiply to a positive overlap.
        max(0.0, min(first[axes + i], second[axes + i]) - max(first[i], second[i]))
        for i in range(axes)
    )
    volumes = [math.prod(box[axes + i] - box[i] for i in range(axes)) for box in (first, second)]
    return shared / (sum(volumes) - shared)


def region_box_iou(first: RegionBox, second: RegionBox) -> float:
    """Return the intersection over union of two boxes, 0 if they are in different regions."""
    return box_iou(first[1], second[1]) if first[0] == second[0] else 0.0
