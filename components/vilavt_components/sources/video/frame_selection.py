"""Choice of the frames that are shown as overviews, and names of frames by their times."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

FrameTimes = Sequence[float]
"""Seconds from the first frame of a video to every frame, ascending."""

_DIGITS = (1, 2, 3, 6)


def select_frames(times: FrameTimes, fps: float | None, max_frames: int) -> tuple[int, ...]:
    """Select the frames nearest to `fps` moments a second, or to `max_frames` moments that are evenly spread.

    They are spread too if `fps` asks for more than `max_frames`. A frame nearest to several moments is selected once.
    """
    if fps is not None and times[-1] * fps < max_frames:
        # The small term keeps the last moment if times are off by a rounding error.
        moments = [number / fps for number in range(math.floor(times[-1] * fps + 1e-6) + 1)]
        return tuple(dict.fromkeys(nearest_frame(times, moment) for moment in moments))
    if max_frames >= len(times):
        return tuple(range(len(times)))
    if max_frames == 1:
        return (nearest_frame(times, times[-1] / 2),)
    moments = [times[-1] * number / (max_frames - 1) for number in range(max_frames)]
    return tuple(dict.fromkeys(nearest_frame(times, moment) for moment in moments))


def nearest_frame(times: FrameTimes, moment: float) -> int:
    """Return the frame whose time is nearest to a moment; the earlier of two."""
    after = bisect_left(times, moment)
    if after == 0 or after == len(times):
        return min(after, len(times) - 1)
    return after - 1 if moment - times[after - 1] <= times[after] - moment else after


def shortest_time(times: FrameTimes, index: int) -> float:
    """Round the time of a frame to the fewest decimals that still identify it; an int if it needs none."""
    # A quarter of the distance to the nearer neighbour: less than half of it, so that `nearest_frame` finds the frame
    # again, with a margin for times that are rounded once more.
    beside = [abs(times[index] - times[other]) for other in (index - 1, index + 1) if 0 <= other < len(times)]
    tolerance = min(beside, default=math.inf) / 4
    for digits in _DIGITS:
        short = round(times[index], digits)
        if abs(short - times[index]) <= tolerance:
            return int(short) if short.is_integer() else short
    return times[index]


def end_time(times: FrameTimes) -> float:
    """Return when the last frame ends if it lasts as long as the others on average."""
    return times[-1] + times[-1] / (len(times) - 1) if len(times) > 1 else times[-1]
