"""Runs side by side: what being told the inquiry is worth to the encoder of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import RunError, UsageError
from vilavt_toolkit.evaluation.statistics import Estimate
from vilavt_toolkit.utils.files import write_text

ARMS = ("modulated", "unmodulated", "shuffled")
"""Arms in which the model zooms alike, and its encoder is told its inquiry, nothing, or another item's."""
QUESTIONS = ("needs a zoom", "several to read")
"""The kinds of question in which the encoder's being told can matter."""
DIFFERENCES = (("modulated", "unmodulated"), ("modulated", "shuffled"))
START, END = "<!-- vilavt compare -->", "<!-- end of vilavt compare -->"
"""Between these, `write` puts the table into a file that has them."""
_PACKAGES = ("torch", "transformers", "timm")


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison of runs, to be shown or written."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int
    """How many columns, from the left, are words."""
    provenance: str


@dataclass(frozen=True)
class Compared:
    """The summary of one run's evaluation."""

    name: str
    summary: Mapping[str, Any]

    @property
    def modulator(self) -> str:
        """The run's modulators, by name."""
        return _names(self.summary["recipe"]["model"]["modulator"])

    def cells(self, subset: str) -> list[str] | None:
        """Every arm's accuracy and every difference on a subset, in percent; None where the run has no such items."""
        found = [self.summary["arms"].get(arm, {}).get("accuracy", {}).get(subset) for arm in ARMS]
        if not all(found):
            return None
        rows = {(d["first"], d["second"]): d for d in self.summary["differences"] if d["subset"] == subset}
        return [*(str(Estimate(**arm)) for arm in found), *(points(rows.get(pair)) for pair in DIFFERENCES)]

    def items(self, subset: str) -> int:
        """How many items of a subset were asked."""
        count: int = self.summary["arms"][ARMS[0]]["accuracy"][subset]["items"]
        return count


def read(runs: Sequence[Path]) -> list[Compared]:
    """Read the evaluations of runs; raises RunError for one without, UsageError where they were asked other things."""
    found = [Compared(str(run), _summary(run)) for run in runs]
    for other in found[1:]:
        for key in ("task", "eval"):
            if _asked(other, key) != _asked(found[0], key):
                raise UsageError(
                    f"{other.name} and {found[0].name} were evaluated with different settings of `{key}`, so that "
                    "their numbers cannot stand side by side; evaluate them alike."
                )
    return found


def _summary(run: Path) -> Mapping[str, Any]:
    file = run / "eval" / "summary.json"
    try:
        summary: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = [arm for arm in ARMS if arm not in summary["arms"]]
        _names(summary["recipe"]["model"]["modulator"])
        summary["differences"], summary["step"], summary["seed"], summary["versions"]
    except FileNotFoundError as error:
        raise RunError(f"{run} has not been evaluated; do that first: vilavt eval {run}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); evaluate the run again: vilavt eval {run}") from error
    if missing:
        raise RunError(f"{run} was evaluated without the arm '{missing[0]}'; evaluate it with all of eval.arms.")
    return summary


def _asked(compared: Compared, key: str) -> Any:
    """What decides the questions: how many were answered at once does not."""
    section = compared.summary["recipe"][key]
    return {name: value for name, value in section.items() if name != "batch_size"}


def table(compared: Sequence[Compared]) -> ComparisonTable:
    """What being told the inquiry is worth to each, by kind of question."""
    header = ["run", "modulator", "questions", "n", *ARMS, *(f"{first} - {second}" for first, second in DIFFERENCES)]
    return ComparisonTable(header, _rows(compared), 3, provenance(compared))


def _rows(compared: Sequence[Compared]) -> list[list[str]]:
    """A row for every kind of question and run: accuracies in percent and differences in points, with 95% intervals."""
    found = []
    for subset in QUESTIONS:
        for run in compared:
            cells = run.cells(subset)
            if cells is not None:
                found.append([run.name, run.modulator, subset, str(run.items(subset)), *cells])
    return found


def provenance(compared: Sequence[Compared]) -> str:
    """What the runs were made with, in one line."""
    seeds = sorted({str(run.summary["seed"]) for run in compared})
    steps = sorted({f"{run.summary['step']:,}" for run in compared})
    made = [{run.summary["versions"].get(name, "unknown") for run in compared} for name in _PACKAGES]
    versions = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in zip(_PACKAGES, made, strict=True))
    runs = f"seed {'/'.join(seeds)}, {'/'.join(steps)} steps"
    return f"Accuracy in %, differences in points, 95% intervals; {runs}; {versions}."


def markdown(table: ComparisonTable) -> str:
    """A comparison as a Markdown table, what it was made with below."""
    rule = ["---"] * table.texts + ["---:"] * (len(table.header) - table.texts)
    lines = "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.rows))
    return f"{lines}\n\n{table.provenance}\n"


def write(table: ComparisonTable, file: Path) -> None:
    """Write the table to `file`; in one that exists, between its markers. Raises UsageError, InputError."""
    text = f"{START}\n{markdown(table)}{END}\n"
    if file.exists():
        old = file.read_text(encoding="utf-8")
        before, start, rest = old.partition(START)
        _, end, after = rest.partition(END)
        if not (start and end):
            raise UsageError(f"{file} has no lines {START} and {END} to write between; add them or name a new file.")
        text = before + text.rstrip("\n") + after
    write_text(file, text)


def _names(parts: Any) -> str:
    # One part, or a list of several.
    return ", ".join(part["name"] for part in (parts if isinstance(parts, list) else [parts]))


def points(row: Mapping[str, Any] | None) -> str:
    """A difference with its interval in points; empty for none."""
    if row is None:
        return ""
    return f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
