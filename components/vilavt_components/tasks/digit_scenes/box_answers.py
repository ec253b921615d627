"""Boxes as answers of task `digit_scenes`: written as in tool calls, [x1, y1, x2, y2] in steps of the whole image."""

from __future__ import annotations

import json

from vilavt_toolkit.contracts import Box
from vilavt_toolkit.vision.boxes import BoxError, read_bbox, write_bbox

ENOUGH = 0.5
"""Intersection over union from which a box is right."""
_LONGEST = 100
"""Letters in a box at most; what is longer is none."""


def written(box: Box, size: int, steps: int) -> str:
    """A box in pixels of an image `size` pixels wide and high as an answer, rounded outward to whole steps."""
    return json.dumps(write_bbox(box, (0.0, 0.0, float(size), float(size)), steps))


def read(text: str, size: int, steps: int) -> Box | None:
    """The box of an answer in pixels; None for anything that is no box of a pixel at least inside the image."""
    if len(text) > _LONGEST:
        return None
    try:
        return read_bbox(json.loads(text), (0.0, 0.0, float(size), float(size)), steps)
    except (BoxError, ValueError, RecursionError):
        return None


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes that are not empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
