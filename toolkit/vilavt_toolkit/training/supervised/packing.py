"""Chooses the dialogues of a step that share a row: few rows, filled by tokens and patches, and as even as can be."""

from __future__ import annotations

from collections.abc import Sequence

from vilavt_toolkit.data.row_budget import RowBudget, RowSize


def fill_rows(sizes: Sequence[RowSize], budget: RowBudget) -> list[list[int]]:
    """Return the numbers of the samples of every row, each sample once.

    No row is larger than the budget, but for a sample that is by itself, which has a row alone. The rows depend on the
    sizes only. The first is the largest, so that memory that is too small is found out at once.
    """
    fills = [budget.fill(size) for size in sizes]
    # First fit, the fullest first: at most 11/9 of the fewest possible rows, and one more.
    order = sorted(range(len(sizes)), key=lambda number: (-fills[number], number))
    rows: list[list[int]] = []
    for number in order:
        row = next((row for row in rows if _takes(row, number, sizes, budget)), None)
        if row is None:
            rows.append([number])
        else:
            row.append(number)
    # The last of these rows may be nearly empty, and the largest one sets the peak of memory.
    rows = _spread_evenly(order, len(rows), sizes, budget) or rows
    rows.sort(key=lambda row: (-sum(sizes[number].tokens for number in row), row))
    return [sorted(row) for row in rows]


def _spread_evenly(order: Sequence[int], count: int, sizes: Sequence[RowSize], budget: RowBudget) -> list[list[int]]:
    """Return `count` rows, each sample in the emptiest one at its turn; no row at all if one would be too large."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for number in order:
        row = min(rows, key=lambda row: _fill(row, sizes, budget))
        if row and not _takes(row, number, sizes, budget):
            return []
        row.append(number)
    return rows


def _takes(row: Sequence[int], number: int, sizes: Sequence[RowSize], budget: RowBudget) -> bool:
    return _fill([*row, number], sizes, budget) <= 1


def _fill(row: Sequence[int], sizes: Sequence[RowSize], budget: RowBudget) -> float:
    tokens, patches = (sum(getattr(sizes[number], name) for number in row) for name in ("tokens", "patches"))
    return budget.fill(RowSize(tokens, patches))
