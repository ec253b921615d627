"""Which frames of a video are shown first, and how a frame is named by its time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

Times = Sequence[float]
"""Seconds from the first frame of a video to every frame, rising."""

_DIGITS = (1, 2, 3, 6)


def chosen(times: Times, fps: float | None, most: int) -> tuple[int, ...]:
    """The frames nearest to `fps` moments a second from the first frame on, or to `most` moments evenly spread.

    Where `fps` asks for more than `most`, these are spread too. Fewer where several moments are nearest to one frame.
    """
    if fps is not None and times[-1] * fps < most:
        moments = [number / fps for number in range(math.floor(times[-1] * fps + 1e-6) + 1)]
        return tuple(dict.fromkeys(nearest(times, moment) for moment in moments))
    if most >= len(times):
        return tuple(range(len(times)))
    if most == 1:
        return (nearest(times, times[-1] / 2),)
    moments = [times[-1] * number / (most - 1) for number in range(most)]
    return tuple(dict.fromkeys(nearest(times, moment) for moment in moments))


def nearest(times: Times, moment: float) -> int:
    """The frame whose time is nearest to a moment; of two, the earlier."""
    after = bisect_left(times, moment)
    if after == 0 or after == len(times):
        return min(after, len(times) - 1)
    return after - 1 if moment - times[after - 1] <= times[after] - moment else after


def written(times: Times, index: int) -> float:
    """The time of a frame with as few decimals as leave no doubt of the frame; an int where it needs none."""
    beside = [abs(times[index] - times[other]) for other in (index - 1, index + 1) if 0 <= other < len(times)]
    doubt = min(beside, default=math.inf) / 4
    for digits in _DIGITS:
        short = round(times[index], digits)
        if abs(short - times[index]) <= doubt:
            return int(short) if short.is_integer() else short
    return times[index]


def end_of(times: Times) -> float:
    """When the last frame ends, if it lasts as long as the others on average."""
    return times[-1] + times[-1] / (len(times) - 1) if len(times) > 1 else times[-1]
