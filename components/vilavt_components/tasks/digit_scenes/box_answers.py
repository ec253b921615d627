"""Boxes as answers of task `digit_scenes`, written as in tool calls: [x1, y1, x2, y2] in units of the whole image."""

from __future__ import annotations

import json

from vilavt_components.common.answers.boxes import box_iou
from vilavt_toolkit.contracts import Box
from vilavt_toolkit.utils.json_objects import load_unambiguous
from vilavt_toolkit.vision.boxes import BoxError, read_bbox, write_bbox

_MIN_IOU = 0.5
"""Intersection over union from which a box is right."""
_MAX_LETTERS = 100
"""A longer text is no box; reading it as JSON could take long."""


def write_answer(box: Box, size: int, units: int) -> str:
    """Write a box in pixels of an image of `size` x `size` as an answer, rounded outward to whole units."""
    return json.dumps(write_bbox(box, (0.0, 0.0, float(size), float(size)), units))


def read_answer(text: str, size: int, units: int) -> Box | None:
    """Read the box of an answer in pixels; None if it is no box inside the image of at least one pixel."""
    if len(text) > _MAX_LETTERS:
        return None
    try:
        return read_bbox(load_unambiguous(text), (0.0, 0.0, float(size), float(size)), units)
    except (BoxError, ValueError, RecursionError):
        return None


def is_right_box(answer: str, right: str, size: int, units: int) -> bool:
    """Return True if the box of an answer overlaps the right one enough."""
    boxes = [read_answer(text, size, units) for text in (answer, right)]
    return boxes[0] is not None and boxes[1] is not None and box_iou(boxes[0], boxes[1]) >= _MIN_IOU
