"""Runs side by side by their encoder: what each answers, how large it is, what a step of training takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import RunError
from vilavt_toolkit.evaluation import compare
from vilavt_toolkit.evaluation.statistics import Estimate
from vilavt_toolkit.utils.files import COST

HEADER = (
    "run", "encoder", "parameters", "seconds per step",
    "single_pass, needs a zoom", "modulated, needs a zoom", "difference", "modulated, needs none",
)  # fmt: skip


@dataclass(frozen=True)
class EncoderRun:
    """The evaluation of a run and what its training cost."""

    compared: compare.Compared
    cost: Mapping[str, Any]

    def row(self) -> list[str]:
        """The cells of its line of the table."""
        summary = self.compared.summary
        parameters = f"{self.cost['parameters']['encoder'] / 1e6:.2f} M"
        zooms, none = "needs a zoom", "needs none"
        found = [("single_pass", zooms), ("modulated", zooms), ("modulated", none)]
        first, second, third = (self._accuracy(arm, subset) for arm, subset in found)
        pair = ("modulated", "single_pass", zooms)
        rows = [d for d in summary["differences"] if (d["first"], d["second"], d["subset"]) == pair]
        difference = compare.points(rows[0] if rows else None)
        encoder = summary["recipe"]["model"]["encoder"]["name"]
        seconds = f"{self.cost['seconds_per_step']:.2f}"
        return [self.compared.name, encoder, parameters, seconds, first, second, difference, third]

    def _accuracy(self, arm: str, subset: str) -> str:
        found = self.compared.summary["arms"].get(arm, {}).get("accuracy", {}).get(subset)
        return "" if found is None else str(Estimate(**found))


def read(runs: Sequence[Path]) -> list[EncoderRun]:
    """Read evaluations and costs of runs; raises RunError, or UsageError where they were asked other things."""
    return [EncoderRun(found, _cost(run)) for run, found in zip(runs, compare.read(runs), strict=True)]


def _cost(run: Path) -> Mapping[str, Any]:
    file = run / COST
    try:
        cost: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        cost["parameters"]["encoder"], cost["seconds_per_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); it is written when a training run ends.") from error
    return cost


def table(runs: Sequence[EncoderRun]) -> compare.ComparisonTable:
    """What each run's encoder answers and costs."""
    return compare.ComparisonTable(HEADER, [run.row() for run in runs], 2, _provenance(runs))


def _provenance(runs: Sequence[EncoderRun]) -> str:
    machines = sorted({_machine(run.cost) for run in runs})
    return f"{compare.provenance([run.compared for run in runs])} Parameters of the encoder; {', '.join(machines)}."


def _machine(cost: Mapping[str, Any]) -> str:
    threads = cost.get("threads")
    return str(cost.get("device", "unknown")) + (f", {threads} threads" if threads else "")
