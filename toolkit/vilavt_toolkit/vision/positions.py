"""Where regions of a group, and their inquiry, stand when they are attended over together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vilavt_toolkit.packed.tokens import Layout, offsets, to_device


def group_positions(positions: Tensor, layout: Layout, room: Sequence[int], prefix: Sequence[int]) -> Tensor:
    """Positions [S, P] of regions that stand one after another, each behind the `room` of those before it.

    Prefix tokens, the first prefix[r] of region r, stay where they are: they are not rotated. (The paper's code.)
    """
    if not any(room):
        return positions
    shifts = np.repeat(_starts(layout, room), layout.partitions["region"])
    for start, count in zip(offsets(layout.partitions["region"]), prefix, strict=True):
        shifts[start : start + count] = 0
    return positions + to_device(shifts, positions.device).unsqueeze(1).to(positions.dtype)


def inquiry_positions(positions: Tensor, layout: Layout, room: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Positions [T, P] of inquiry tokens: behind the last region of their group, one step after another.

    All at 0 where regions take no room. (The paper's code.)
    """
    places = np.zeros(sum(lengths), dtype=np.int64)
    if any(room):
        ends = np.zeros(len(lengths), dtype=np.int64)
        np.add.at(ends, list(layout.groups), room)  # a tuple would index axes
        places = np.concatenate([end + np.arange(length) for end, length in zip(ends, lengths, strict=True)])
    axes = positions.shape[1]
    return to_device(places, positions.device).unsqueeze(1).expand(-1, axes).to(positions.dtype)


def _starts(layout: Layout, room: Sequence[int]) -> list[int]:
    """The room taken by the earlier regions of every region's group."""
    starts: list[int] = []
    for region, group in enumerate(layout.groups):
        first = region == 0 or layout.groups[region - 1] != group
        starts.append(0 if first else starts[-1] + room[region - 1])
    return starts
