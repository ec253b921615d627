"""What `vilavt data check` does: all that is wrong with a file of any known format, and how long its samples are."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.data.checking import PATCH, Checker, Facts
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.data.lengths import Lengths, Meter, weightless_model
from vilavt_toolkit.data.opening import open_rows
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.data.shards import expand
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import Entry, tasks
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.utils.progress import track

_LOOKED_AT = 100
"""Rows among which one must be of a known format."""
_BARS, _WIDTH = 10, 40
_WIDE = 400
"""Width where the output is no terminal: a sentence stays on one line."""


@dataclass(frozen=True)
class _Checked:
    """What a check found."""

    problems: int
    samples: int


def check(name: str, root: str, recipe: str | None, decode: bool) -> None:
    """Check a data file and print what is in it; raises InputError, after all of it has been told, where it is wrong.

    With `recipe` lengths are those of its tokenizer, encoder and context; with `decode` every image is decoded whole.
    """
    checked = load_recipe(recipe, []) if recipe else None
    load_builtin()
    console = _console()
    files = [open_rows(path) for path in expand(name)]
    task = _task(files, name, root, checked)
    found = _problems(console, task, files, decode)
    if checked is not None and not found.problems:
        found = replace(found, problems=_measure(console, checked, task, found.samples))
    if found.problems:
        raise InputError(
            f"{name}: {_count(found.problems, 'problem')} in {_count(found.samples, 'sample')}; mend them, training "
            f"{'would stop at them' if decode else 'does not start on this file'}."
        )
    console.print(f"{name}: every sample is right")


def _task(files: Sequence[Rows], name: str, root: str, recipe: CheckedRecipe | None) -> FileTask:
    """The task that reads these files, set as the recipe's where that is of the same kind."""
    entry = _format(files[0])
    part = recipe.recipe.task if recipe is not None else None
    if recipe is not None and part is not None and part.entry is not entry and issubclass(part.entry.cls, FileTask):
        raise InputError(
            f"{name} is of the format of task '{entry.name}', and recipe {recipe.name} reads '{part.entry.name}'; give "
            "a recipe of that task, or leave --recipe out."
        )
    if part is not None and part.entry is entry:
        config = replace(part.config, files=name, root=root or part.config.root)
    else:
        config = entry.config(files=name, root=root, videos=True)
    made: FileTask = entry.cls(config)
    return made


def _format(rows: Rows) -> Entry[Any]:
    """The task that a file's first rows are for; raises InputError where there is none."""
    known = [(entry, entry.cls) for entry in tasks.entries() if issubclass(entry.cls, FileTask)]
    keys: list[str] = []
    wrong = ""
    for index in range(min(len(rows), _LOOKED_AT)):
        try:
            row = rows.read(index)
        except BadRow as problem:
            wrong = wrong or f"{rows.path}, {rows.place(index)}: {problem}"
            continue
        if not isinstance(row, Mapping):
            continue
        keys = keys or [str(key) for key in row]
        for entry, reader in known:
            if reader.recognises(row):
                return entry
    if wrong and not keys:
        raise InputError(wrong)
    has = f"has the fields {', '.join(keys[:12])}" if keys else "has no JSON object"
    names = ", ".join(entry.name for entry, _ in known)
    raise InputError(f"{rows.path}: {has} where its samples should begin, and no format has those (known: {names}).")


def _problems(console: Console, task: FileTask, files: Sequence[Rows], decode: bool) -> _Checked:
    checker = Checker(task, task.trains, Inspector(decode))
    problems = [str(problem) for rows in files for problem in checker.problems(rows)]
    for problem in problems:
        console.print(problem)
    samples = sum(map(len, files))
    _show_facts(console, task.name, samples, checker.facts)
    return _Checked(len(problems), samples)


def _measure(console: Console, recipe: CheckedRecipe, task: FileTask, samples: int) -> int:
    """Print lengths by the recipe's model; the number of samples that it cannot take."""
    meter, split = Meter(weightless_model(recipe)), "train" if task.trains else "test"
    size = task.length(split)
    for number in track(range(size), size, "measuring"):
        meter.add(number, task.sample(split, number))
    lengths = meter.lengths
    problems = lengths.problems()
    for number, why in problems:
        console.print(f"{task.place(split, number)}: {why}")
    _show_lengths(console, recipe.name, lengths)
    return len(problems)


# --- Showing ----------------------------------------------------------------------------------------


def _console() -> Console:
    log = not sys.stdout.isatty()
    width = _WIDE if log and "COLUMNS" not in os.environ else None
    return Console(markup=False, highlight=False, soft_wrap=True, width=width)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _show_facts(console: Console, name: str, samples: int, facts: Facts) -> None:
    console.print(
        f"format {name}: {_count(samples, 'sample')}, {facts.samples:,} of them right; in these "
        f"{_count(facts.images, 'image')}, {_count(facts.videos, 'video')}, {facts.text_only:,} of text alone"
        + (f", {_count(facts.turns, 'turn')} of the model" if facts.turns else "")
    )
    _histogram(console, "words a sample", facts.words)
    if facts.images:
        _histogram(console, f"patches of {PATCH} x {PATCH} pixels a sample, images as they are", facts.patches)


def _show_lengths(console: Console, name: str, lengths: Lengths) -> None:
    _histogram(console, f"tokens a sample, by {name} (context {lengths.context:,})", lengths.tokens)
    if any(lengths.patches):
        _histogram(console, f"patches a sample, by the encoder of {name}", lengths.patches)
    cut = len(lengths.too_long())
    console.print(
        f"longer than the context: {cut:,} of {_count(len(lengths.tokens), 'sample')}; made smaller by the pixel "
        f"budget: {_count(lengths.smaller, 'image')}"
    )


def _histogram(console: Console, title: str, values: Sequence[int]) -> None:
    """Draw how many samples have how much, in bars of equal width."""
    if not values:
        return
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // _BARS))
    counts = [0] * ((high - low) // step + 1)
    for value in values:
        counts[(value - low) // step] += 1
    ordered = sorted(values)
    console.print(f"{title}: least {low:,}, median {ordered[len(ordered) // 2]:,}, most {high:,}")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for number, count in enumerate(counts):
        first = low + number * step
        bar = "█" * max(round(_WIDTH * count / max(counts)), count > 0)
        table.add_row(f"{first:,} to {first + step - 1:,}" if step > 1 else f"{first:,}", f"{count:,}", bar)
    console.print(table)
