"""Positions of a group's regions, and of their inquiry, when they are attended over together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vilavt_toolkit.packed.tokens import Layout, segment_starts, to_device


def group_positions(positions: Tensor, layout: Layout, strides: Sequence[int], prefix: Sequence[int]) -> Tensor:
    """Return positions [S, P] of regions in sequence, each shifted by the strides of those before it in its group.

    The first prefix[r] tokens of region r keep their positions: prefix tokens are not rotated. (The paper's code.)
    """
    if not any(strides):
        return positions
    shifts = np.repeat(_region_shifts(layout, strides), layout.partitions["region"])
    for start, count in zip(segment_starts(layout.partitions["region"]), prefix, strict=True):
        shifts[start : start + count] = 0
    return positions + to_device(shifts, positions.device).unsqueeze(1).to(positions.dtype)


def inquiry_positions(positions: Tensor, layout: Layout, strides: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return positions [K, P] of context keys: after the last region of their group, one step after another.

    `lengths` counts the keys of every group. They are all 0 if the strides are 0. (The paper's code.)
    """
    places = np.zeros(sum(lengths), dtype=np.int64)
    if any(strides):
        ends = np.zeros(len(lengths), dtype=np.int64)
        np.add.at(ends, list(layout.groups), strides)  # a tuple would index axes
        places = np.concatenate([end + np.arange(length) for end, length in zip(ends, lengths, strict=True)])
    axes = positions.shape[1]
    return to_device(places, positions.device).unsqueeze(1).expand(-1, axes).to(positions.dtype)


def _region_shifts(layout: Layout, strides: Sequence[int]) -> list[int]:
    """Return the sum of the strides of the earlier regions of its group, for every region."""
    starts: list[int] = []
    for region, group in enumerate(layout.groups):
        first = region == 0 or layout.groups[region - 1] != group
        starts.append(0 if first else starts[-1] + strides[region - 1])
    return starts
