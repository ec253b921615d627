"""Runs side by side: how much better each run's encoder does when it gets the inquiry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import RunError, UsageError
from vilavt_toolkit.evaluation.saved import read_summary
from vilavt_toolkit.evaluation.statistics import Estimate
from vilavt_toolkit.utils.files import read_plain_text, write_text
from vilavt_toolkit.utils.text import shorten_text

ARMS = ("modulated", "unmodulated", "shuffled")
"""Arms in which the model may zoom; the encoder gets the model's own inquiry, none, or that of another item."""
QUESTIONS = ("needs a zoom", "several to read")
"""The kinds of question in which the inquiry can matter to the encoder."""
ALL_QUESTIONS = "all"
DIFFERENCES = (("modulated", "unmodulated"), ("modulated", "shuffled"))
START, END = "<!-- vilavt compare -->", "<!-- end of vilavt compare -->"
"""The lines between which `write_table` puts the table into an existing file."""
_PACKAGES = ("torch", "transformers", "timm")


@dataclass(frozen=True)
class TextTable:
    """A table of strings, for the terminal or a Markdown file."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int
    """Number of columns, from the left, that hold words; the others hold numbers and are aligned right."""
    provenance: str
    """A sentence below the table: how the numbers were obtained."""


@dataclass(frozen=True)
class RunSummary:
    """The summary of one run's evaluation."""

    name: str
    summary: Mapping[str, Any]

    @property
    def modulator(self) -> str:
        """The names of the run's modulators."""
        return _join_names(self.summary["recipe"]["model"]["modulator"])

    def find_accuracy(self, arm: str, subset: str) -> Estimate | None:
        """Return an arm's accuracy on a subset; None if it was not measured."""
        found = self.summary["arms"].get(arm, {}).get("accuracy", {}).get(subset)
        return Estimate.from_json(found) if found else None

    def format_difference(self, first: str, second: str, subset: str) -> str:
        """Return the difference of two arms on a subset in points; empty if it was not measured."""
        for row in self.summary["differences"]:
            if (row["first"], row["second"], row["subset"]) == (first, second, subset):
                return Estimate.from_json(row).format_points()
        return ""

    def format_cells(self, subset: str) -> list[str] | None:
        """Return every arm's accuracy in percent and every difference in points; None if the run has no such items."""
        found = [self.find_accuracy(arm, subset) for arm in ARMS]
        if not all(found):
            return None
        return [*map(str, found), *(self.format_difference(*pair, subset) for pair in DIFFERENCES)]

    def count_items(self, subset: str) -> int:
        """Return the number of items of a subset."""
        found = self.find_accuracy(ARMS[0], subset)
        return 0 if found is None else found.items


def read_summaries(runs: Sequence[Path]) -> list[RunSummary]:
    """Read the evaluations of runs.

    Raises RunError for a run without one, and UsageError if the runs were asked different questions.
    """
    found = [RunSummary(str(run), _read_all_arms(run)) for run in runs]
    # Other questions would make two runs differ by their items rather than by their encoders.
    for other in found[1:]:
        for key in ("task", "eval"):
            if _question_settings(other, key) != _question_settings(found[0], key):
                raise UsageError(
                    f"{other.name} and {found[0].name} were evaluated with different settings of `{key}`, so that "
                    "their numbers cannot stand side by side. Evaluate them with the same settings."
                )
    return found


def _read_all_arms(run: Path) -> Mapping[str, Any]:
    summary = read_summary(run)
    missing = [arm for arm in ARMS if arm not in summary["arms"]]
    if missing:
        raise RunError(f"{run} was evaluated without the arm '{missing[0]}'. Evaluate it with all of eval.arms.")
    return summary


def _question_settings(run: RunSummary, key: str) -> dict[str, Any]:
    """Return the settings of a section that decide the questions; the batch size does not."""
    section = run.summary["recipe"][key]
    return {name: value for name, value in section.items() if name != "batch_size"}


def build_modulator_table(runs: Sequence[RunSummary]) -> TextTable:
    """Build the table of what the inquiry is worth to each run's encoder, by kind of question.

    Where no question is of such a kind, as of a task that does not say which need a zoom, it has all questions.
    """
    header = ["run", "modulator", "questions", "n", *ARMS, *(f"{first} - {second}" for first, second in DIFFERENCES)]
    rows = []
    kinds = [subset for subset in QUESTIONS if any(run.format_cells(subset) for run in runs)]
    # By question first, so that the runs to compare stand below each other.
    for subset in kinds or [ALL_QUESTIONS]:
        for run in runs:
            cells = run.format_cells(subset)
            if cells is not None:
                rows.append([run.name, run.modulator, subset, str(run.count_items(subset)), *cells])
    return TextTable(header, rows, 3, describe_provenance(runs))


def describe_provenance(runs: Sequence[RunSummary]) -> str:
    """Describe in one line how the runs' numbers were obtained: units, seeds, steps, versions."""
    # Sets, since runs that agree are described once and only what differs is listed.
    seeds = sorted({str(run.summary["seed"]) for run in runs})
    steps = sorted({f"{run.summary['step']:,}" for run in runs})
    versions = []
    for name in _PACKAGES:
        found = {run.summary["versions"].get(name, "unknown") for run in runs}
        versions.append(f"{name} {'/'.join(sorted(found))}")
    made_with = f"seed {'/'.join(seeds)}, {'/'.join(steps)} steps; {', '.join(versions)}"
    return f"Accuracy in %, differences in points, 95% intervals; {made_with}."


def format_markdown(table: TextTable) -> str:
    """Write a table in Markdown, its provenance below."""
    rule = ["---"] * table.text_columns + ["---:"] * (len(table.header) - table.text_columns)
    lines = "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.rows))
    return f"{lines}\n\n{table.provenance}\n"


def write_table(table: TextTable, file: Path) -> None:
    """Write the table to a new file, or between the markers of an existing one; raises UsageError, InputError."""
    text = f"{START}\n{format_markdown(table)}{END}\n"
    try:
        old = read_plain_text(file) if file.exists() else None
    except (OSError, ValueError) as error:  # a name that is too long or has a null byte, or what is no UTF-8 text
        reason = shorten_text(str(error))
        raise UsageError(
            f"{shorten_text(str(file))} cannot be read ({reason}). Name a Markdown file or a new one."
        ) from error
    if old is not None:
        before, start, rest = old.partition(START)
        _, end, after = rest.partition(END)
        # A page without markers may hold anything, so that nothing of it is overwritten.
        if not (start and end):
            raise UsageError(f"{file} has no lines {START} and {END} to write between. Add them or name a new file.")
        text = before + text.rstrip("\n") + after
    write_text(file, text)


def _join_names(parts: Any) -> str:
    # A recipe gives one component, or a list of several.
    return ", ".join(part["name"] for part in (parts if isinstance(parts, list) else [parts]))
