"""Runs side by side by their encoder: accuracy, size, and the time that a step of training takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.evaluation.compare import RunSummary, TextTable, describe_provenance, read_summaries
from vilavt_toolkit.evaluation.saved import read_cost

_ZOOM, _NO_ZOOM = "needs a zoom", "needs none"
HEADER = (
    "run", "encoder", "parameters", "seconds per step",
    f"single_pass, {_ZOOM}", f"modulated, {_ZOOM}", "difference", f"modulated, {_NO_ZOOM}",
)  # fmt: skip


@dataclass(frozen=True)
class EncoderRun:
    """The evaluation of a run and the cost of its training."""

    evaluation: RunSummary
    cost: Mapping[str, Any]

    def format_row(self) -> list[str]:
        """Return the cells of this run's row of the table."""
        run = self.evaluation
        # Without the tool the encoder must read from the overview, so that the difference is what its zoom is worth.
        return [
            run.name,
            run.summary["recipe"]["model"]["encoder"]["name"],
            f"{self.cost['parameters']['encoder'] / 1e6:.2f} M",
            f"{self.cost['seconds_per_step']:.2f}",
            self._format_accuracy("single_pass", _ZOOM),
            self._format_accuracy("modulated", _ZOOM),
            run.format_difference("modulated", "single_pass", _ZOOM),
            self._format_accuracy("modulated", _NO_ZOOM),
        ]

    def _format_accuracy(self, arm: str, subset: str) -> str:
        found = self.evaluation.find_accuracy(arm, subset)
        return "" if found is None else str(found)


def read_encoder_runs(runs: Sequence[Path]) -> list[EncoderRun]:
    """Read evaluations and costs of runs; raises RunError, or UsageError if they were asked different questions."""
    return [EncoderRun(found, read_cost(run)) for run, found in zip(runs, read_summaries(runs), strict=True)]


def build_encoder_table(runs: Sequence[EncoderRun]) -> TextTable:
    """Build the table of what each run's encoder answers and costs."""
    machines = sorted({_describe_machine(run.cost) for run in runs})
    provenance = (
        f"{describe_provenance([run.evaluation for run in runs])} Parameters of the encoder; {', '.join(machines)}."
    )
    return TextTable(HEADER, [run.format_row() for run in runs], 2, provenance)


def _describe_machine(cost: Mapping[str, Any]) -> str:
    threads = cost.get("threads")
    return str(cost.get("device", "unknown")) + (f", {threads} threads" if threads else "")
