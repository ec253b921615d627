"""The beginning that rollouts of a prompt share, and rows in which that beginning stands once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch

from vilavt_toolkit.contracts import Trajectory, View
from vilavt_toolkit.data.row_budget import RowBudget, RowSize

Rollout = tuple[Trajectory, Sequence[View]]
"""A trajectory, and the views of its regions."""


def count_shared_columns(rollouts: Sequence[Rollout]) -> int:
    """Return how many columns all rollouts begin with that a row may hold once; 0 if there are none.

    They are given tokens and whole regions with the same pixels, before the column that predicts the first token that
    any of them wrote.
    """
    (first, views), *others = rollouts
    # The last given token stays with each rollout: its column predicts what only that rollout wrote.
    count = min(_count_given(trajectory) for trajectory, _ in rollouts) - 1
    for trajectory, _ in others:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(first.ids[:count], trajectory.ids, strict=False))
        count = sum(1 for _ in same)
    for place, (region, view) in enumerate(zip(first.regions, views, strict=True)):
        if region.start >= count:
            break
        alike = all(_shows(rollout, place, region, view) for rollout in others)
        if not alike or region.start + region.count > count:
            count = region.start
            break
    return count if count > 0 and all(_keeps_groups_whole(trajectory, count) for trajectory, _ in rollouts) else 0


def _count_given(trajectory: Trajectory) -> int:
    return trajectory.produced.index(True) if True in trajectory.produced else len(trajectory.ids)


def _shows(rollout: Rollout, place: int, region: object, view: View) -> bool:
    """Return True if the region of that number is the same one with the same pixels."""
    trajectory, views = rollout
    if place >= len(views) or trajectory.regions[place] != region or views[place].size != view.size:
        return False
    data = views[place].data
    return data is view.data or torch.equal(data, view.data)


def _keeps_groups_whole(trajectory: Trajectory, columns: int) -> bool:
    """Return True if no inquiry group has regions on both sides of a column: regions of a group may see each other."""
    before = {region.group for region in trajectory.regions if region.start < columns}
    return before.isdisjoint(region.group for region in trajectory.regions if region.start >= columns)


@dataclass
class _Row:
    """Collects rollouts of a row, and the size that they have together."""

    numbers: list[int] = field(default_factory=list)
    prompts: set[int] = field(default_factory=set)
    tokens: int = 0
    patches: int = 0


def fill_shared_rows(
    sizes: Sequence[RowSize], stems: Sequence[RowSize], prompts: Sequence[int], budget: RowBudget
) -> list[list[int]]:
    """Return the numbers of the rollouts of every row, each once, those of a prompt one after another.

    `sizes` are those of the rollouts, `prompts` the number of each one's prompt, and `stems` what the rollouts of a
    prompt share, which a row holds once. No row is larger than the budget, but for a rollout that is by itself. The
    first is the largest, so that memory that is too small is found out at once.
    """
    rows: list[_Row] = []
    totals: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        totals[prompt] = totals.get(prompt, stems[prompt].tokens) + sizes[number].tokens - stems[prompt].tokens
    # The largest prompts first, so that small ones fill what they leave.
    order = sorted(range(len(sizes)), key=lambda number: (-totals[prompts[number]], prompts[number], number))
    for number in order:
        row = next((row for row in rows if _takes(row, number, sizes, stems, prompts, budget)), None)
        if row is None:
            row = _Row()
            rows.append(row)
        grown = _grow(row, number, sizes, stems, prompts)
        row.tokens, row.patches = grown.tokens, grown.patches
        row.numbers.append(number)
        row.prompts.add(prompts[number])
    rows.sort(key=lambda row: -row.tokens)
    return [sorted(row.numbers, key=lambda number: (prompts[number], number)) for row in rows]


def _grow(
    row: _Row, number: int, sizes: Sequence[RowSize], stems: Sequence[RowSize], prompts: Sequence[int]
) -> RowSize:
    """Return the size of a row with one rollout more."""
    size, stem = sizes[number], stems[prompts[number]]
    known = stem if prompts[number] in row.prompts else RowSize(0, 0)
    return RowSize(row.tokens + size.tokens - known.tokens, row.patches + size.patches - known.patches)


def _takes(
    row: _Row,
    number: int,
    sizes: Sequence[RowSize],
    stems: Sequence[RowSize],
    prompts: Sequence[int],
    budget: RowBudget,
) -> bool:
    return budget.fill(_grow(row, number, sizes, stems, prompts)) <= 1
