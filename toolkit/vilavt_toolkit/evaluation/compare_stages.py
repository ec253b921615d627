"""Runs of several training stages side by side, item by item: what each stage gained, lost and saved."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import RunError, UsageError
from vilavt_toolkit.evaluation.saved import read_items
from vilavt_toolkit.evaluation.statistics import Estimate, bootstrap_mean, cluster_of, paired_difference

ARM, BASE = "modulated", "single_pass"
HEADER = ("run", "arm", "needs a zoom", "needs none", "all", "needless zooms", "tool calls per item")


@dataclass(frozen=True)
class ArmItems:
    """The items of one arm of a run, by id, as plain data."""

    run: str
    arm: str
    items: Mapping[str, Mapping[str, Any]]

    def select_items(self, needs_zoom: bool | None) -> list[Mapping[str, Any]]:
        """Return the items whose questions need a zoom, or need none; None: all."""
        return [item for item in self.items.values() if needs_zoom in (None, item["tags"].get("needs_zoom"))]

    def estimate_accuracy(self, needs_zoom: bool | None) -> Estimate | None:
        """Return the accuracy with its interval; None if there is no such item."""
        items = self.select_items(needs_zoom)
        return _estimate_mean(items, [item["score"] for item in items])

    def estimate_needless_zooms(self) -> Estimate | None:
        """Return the share of questions that need no zoom and got one; None if there is no such item."""
        items = self.select_items(False)
        return _estimate_mean(items, [float(item["calls"] > 0) for item in items])

    def format_row(self) -> list[str]:
        """Return the cells of this arm's row of the table."""
        estimates = [self.estimate_accuracy(needs_zoom) for needs_zoom in (True, False, None)]
        estimates.append(self.estimate_needless_zooms())
        calls = sum(item["calls"] for item in self.items.values()) / len(self.items)
        cells = ["" if estimate is None else str(estimate) for estimate in estimates]
        return [self.run, self.arm, *cells, f"{calls:.2f}"]


def _estimate_mean(items: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> Estimate | None:
    return bootstrap_mean(scores, [_item_cluster(item) for item in items]) if items else None


def _item_cluster(item: Mapping[str, Any]) -> Hashable:
    return cluster_of(item["tags"], item["id"])


def read_stage_items(runs: Sequence[Path]) -> list[ArmItems]:
    """Read the first run's items without the tool, then every run's with it.

    Raises RunError for a run without them, and UsageError if the runs were asked different items.
    """
    found: list[ArmItems] = []
    for number, run in enumerate(runs):
        # The base stands in the table once, for the run that all others are compared with.
        found += _read_arms(run, (BASE, ARM) if number == 0 else (ARM,))
    for other in found[1:]:
        if set(other.items) != set(found[0].items):
            raise UsageError(
                f"{other.run} and {found[0].run} were asked different items, so that their answers cannot stand side "
                "by side. Evaluate them with the same settings of `task` and `eval`."
            )
    return found


def _read_arms(run: Path, arms: Sequence[str]) -> list[ArmItems]:
    # The items rather than the summary, which has no differences between runs.
    items: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for item in read_items(run):
        if item["arm"] in items:
            items[item["arm"]][item["id"]] = item
    missing = next((arm for arm in arms if not items[arm]), None)
    if missing:
        raise RunError(f"{run} was evaluated without the arm '{missing}'. Add it to eval.arms and evaluate again.")
    return [ArmItems(str(run), arm, items[arm]) for arm in arms]


def format_stage_differences(stages: Sequence[ArmItems]) -> list[str]:
    """Write the paired differences of the later runs to the first, on all items, as sentences."""
    _, first, *later = stages
    sentences = []
    for other in later:
        # Items are matched by id, since two files may list them in different orders.
        ids = list(first.items)
        scores, first_scores = ([run.items[i]["score"] for i in ids] for run in (other, first))
        estimate = paired_difference(scores, first_scores, [_item_cluster(first.items[i]) for i in ids])
        sentences.append(f"{other.run} - {first.run}, all items: {estimate.format_points(' points')}")
    return sentences
