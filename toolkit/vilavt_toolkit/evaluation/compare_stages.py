"""Runs of several training stages side by side, answer by answer: what each stage gained, lost and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import RunError, UsageError
from vilavt_toolkit.evaluation.statistics import Estimate, bootstrap, paired

ARM, BASE = "modulated", "single_pass"
HEADER = ("run", "arm", "needs a zoom", "needs none", "all", "needless zooms", "tool calls per item")


@dataclass(frozen=True)
class Answered:
    """The items of one arm of a run, by id."""

    run: str
    arm: str
    items: Mapping[str, Mapping[str, Any]]

    def chosen(self, needs_zoom: bool | None) -> list[Mapping[str, Any]]:
        """The items whose questions do or do not need a zoom; None: all."""
        return [item for item in self.items.values() if needs_zoom in (None, item["tags"].get("needs_zoom"))]

    def accuracy(self, needs_zoom: bool | None) -> Estimate | None:
        """Accuracy with its interval; None where there is no such item."""
        items = self.chosen(needs_zoom)
        return bootstrap([item["score"] for item in items], [_cluster(item) for item in items]) if items else None

    def needless(self) -> Estimate | None:
        """The share of questions that need no zoom and got one; None where there is no such item."""
        items = self.chosen(False)
        return bootstrap([float(item["calls"] > 0) for item in items], [_cluster(i) for i in items]) if items else None

    def row(self) -> list[str]:
        """The cells of its line of the table."""
        found = [self.accuracy(True), self.accuracy(False), self.accuracy(None), self.needless()]
        calls = sum(item["calls"] for item in self.items.values()) / len(self.items)
        return [self.run, self.arm, *("" if estimate is None else str(estimate) for estimate in found), f"{calls:.2f}"]


def read(runs: Sequence[Path]) -> list[Answered]:
    """The first run without the tool, then every run with it; raises RunError, UsageError for other questions."""
    found = [arm for number, run in enumerate(runs) for arm in _arms(run, (BASE, ARM) if number == 0 else (ARM,))]
    for other in found[1:]:
        if set(other.items) != set(found[0].items):
            raise UsageError(
                f"{other.run} and {found[0].run} were asked different items, so that their answers cannot stand side "
                "by side; evaluate them with the same settings of `task` and `eval`."
            )
    return found


def _arms(run: Path, arms: Sequence[str]) -> list[Answered]:
    file = run / "eval" / "items.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        items = {arm: {line["id"]: line for line in lines if line["arm"] == arm} for arm in arms}
    except FileNotFoundError as error:
        raise RunError(f"{run} has not been evaluated; do that first: vilavt eval {run}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); evaluate the run again: vilavt eval {run}") from error
    missing = next((arm for arm in arms if not items[arm]), None)
    if missing:
        raise RunError(f"{run} was evaluated without the arm '{missing}'; add it to eval.arms and evaluate again.")
    return [Answered(str(run), arm, items[arm]) for arm in arms]


def lines(answered: Sequence[Answered]) -> list[str]:
    """The paired differences of the later runs to the first, on all items, as sentences."""
    _, first, *later = answered
    said = []
    for other in later:
        ids = list(first.items)
        mine, theirs = ([run.items[i]["score"] for i in ids] for run in (other, first))
        estimate = paired(mine, theirs, [_cluster(first.items[i]) for i in ids])
        low, high, mean = 100 * estimate.low, 100 * estimate.high, 100 * estimate.mean
        said.append(f"{other.run} - {first.run}, all items: {mean:+.1f} points [{low:+.1f}, {high:+.1f}]")
    return said


def _cluster(item: Mapping[str, Any]) -> Any:
    return item["tags"].get("group", item["id"])
