"""`vilavt data check`: every problem of a data file of any known format, and the lengths of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.data.lengths import LengthMeter, Lengths, build_meta_model
from vilavt_toolkit.data.opening import open_rows
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.data.row_budget import build_sample_budget
from vilavt_toolkit.data.row_checker import PATCH, DataStatistics, RowChecker
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.data.sample_text import describe_row, describe_tokens
from vilavt_toolkit.data.shards import expand_braces
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import Entry, Part, tasks
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.utils.console import make_console
from vilavt_toolkit.utils.progress import track_progress
from vilavt_toolkit.utils.text import shorten_list, shorten_text

_FIRST_ROWS = 100
"""One of so many rows must be of a known format."""
_MAX_BARS, _BAR_WIDTH = 10, 40


@dataclass(frozen=True)
class _CheckResult:
    """Number of problems found in a number of samples."""

    problems: int
    samples: int


def check_data(name: str, root: str, recipe: str | None, decode: bool) -> None:
    """Check a data file and print its contents; raises InputError at the end if there are problems.

    With `recipe`, lengths are counted with its tokenizer, encoder and context. With `decode`, every image is decoded
    completely.
    """
    checked = load_recipe(recipe, []) if recipe else None
    load_builtin()
    console = make_console()
    files = [open_rows(path) for path in expand_braces(name)]
    task = _build_task(files, name, root, checked)
    found = _print_problems(console, task, files, decode)
    # Samples are prepared only from files without wrong rows.
    if checked is not None and not found.problems:
        check_sources(task, checked.recipe.model.source, _split_of(task))
        found = replace(found, problems=_measure_lengths(console, checked, task))
    elif not found.problems:
        _print_first_sample(console, "the first sample as it is read (with --recipe: as the model will see it)",
                            describe_row(task.sample(_split_of(task), 0)))  # fmt: skip
    if found.problems:
        effect = "would stop at them" if decode else "does not start on this file"
        raise InputError(
            f"{name}: {_count(found.problems, 'problem')} in {_count(found.samples, 'sample')}. Training {effect}: "
            f"correct or remove these samples and run `vilavt data check {name}` again."
        )
    console.print(f"{name}: every sample is right")


def _build_task(files: Sequence[Rows], name: str, root: str, recipe: CheckedRecipe | None) -> FileTask:
    """Build the task that reads these files, with the settings of the recipe's if that is the same task."""
    entry = _find_task(files[0])
    part = recipe.recipe.task if recipe is not None else None
    if recipe is not None and part is not None and part.entry is not entry and issubclass(part.entry.cls, FileTask):
        raise InputError(
            f"{name} has the format of task '{entry.name}', but recipe {recipe.name} reads '{part.entry.name}'. Give a "
            f"recipe of task '{entry.name}', or leave --recipe out."
        )
    # A recipe's settings change what is valid: its root, its pixel budget, whether videos may stand in the file.
    if part is not None and part.entry is entry:
        config = replace(part.config, files=name, root=root or part.config.root)
    else:
        # Without a recipe nobody knows whether its source will open videos.
        videos = recipe is None or "video" in recipe.recipe.model.source.entry.cls.opens
        config = entry.config(files=name, root=root, videos=videos)
    task: FileTask = Part(entry.kind, entry.name, config).build()
    return task


def _find_task(rows: Rows) -> Entry[Any]:
    """Return the registered task that a file's first rows belong to; raises InputError if there is none."""
    known = [(entry, entry.cls) for entry in tasks.entries() if issubclass(entry.cls, FileTask)]
    # A damaged first row says nothing of the format, so the first readable row decides.
    keys: list[str] = []
    wrong = ""
    for index in range(min(len(rows), _FIRST_ROWS)):
        try:
            row = rows.read_row(index)
        except BadRow as problem:
            wrong = wrong or f"{rows.path}, {rows.locate_row(index)}: {problem}"
            continue
        if not isinstance(row, Mapping):
            continue
        keys = keys or [shorten_text(str(key), 40) for key in row]
        for entry, reader in known:
            if reader.recognises(row):
                return entry
    if wrong and not keys:
        raise InputError(wrong)
    has = f"has the fields {shorten_list(keys, 12)}" if keys else "has no JSON object"
    names = ", ".join(entry.name for entry, _ in known)
    raise InputError(
        f"{rows.path}: {has} where its samples should begin, and no task here reads those. Write one of these formats: "
        f"{names} (docs/data.md has the fields of each)."
    )


def _print_problems(console: Console, task: FileTask, files: Sequence[Rows], decode: bool) -> _CheckResult:
    checker = RowChecker(task, task.trains, Inspector(decode))
    problems = [str(problem) for rows in files for problem in checker.find_problems(rows)]
    for problem in problems:
        console.print(problem)
    samples = sum(map(len, files))
    _print_statistics(console, task.name, samples, checker.statistics)
    if task.trains and samples > 1 and len(set(checker.groups)) == 1:
        console.print("all samples show the same first image, so task.val_share can hold none of them out")
    return _CheckResult(len(problems), samples)


def _measure_lengths(console: Console, recipe: CheckedRecipe, task: FileTask) -> int:
    """Print lengths as the recipe's model counts them, and return the number of samples that do not fit."""
    # No weight is read: only sizes are counted, with the recipe's tokenizer and pixel budget.
    model = build_meta_model(recipe)
    budget = build_sample_budget(recipe.recipe.train, model)
    meter, split = LengthMeter(model, budget=budget), _split_of(task)
    size = task.length(split)
    for number in track_progress(range(size), size, "measuring"):
        meter.measure(number, task.sample(split, number))
    lengths = meter.lengths
    problems = lengths.list_problems()
    for number, why in problems:
        console.print(f"{task.locate_sample(split, number)}: {why}")
    _print_lengths(console, recipe.name, lengths)
    if not problems:
        sample = task.sample(split, 0)
        title = "the first sample as the model will see it (it learns to write the lines with >)"
        _print_first_sample(console, title, describe_tokens(meter.build_session(sample), sample))
    return len(problems)


def _split_of(task: FileTask) -> str:
    """Return the split that the setting `files` is."""
    return "train" if task.trains else "test"


# --- Printing ---------------------------------------------------------------------------------------


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_statistics(console: Console, name: str, samples: int, statistics: DataStatistics) -> None:
    images, videos = _count(statistics.images, "image"), _count(statistics.videos, "video")
    clouds = f", {_count(statistics.point_clouds, 'point cloud')}" if statistics.point_clouds else ""
    console.print(
        f"format {name}: {_count(samples, 'sample')}, {statistics.samples:,} of them right, with {images}, {videos}"
        f"{clouds}, {statistics.text_only:,} of text alone"
        + (f", {_count(statistics.turns, 'turn')} of the model" if statistics.turns else "")
    )
    _print_notes(console, name, statistics)
    _print_histogram(console, "words a sample", statistics.words)
    if statistics.images:
        _print_histogram(
            console, f"patches of {PATCH} x {PATCH} pixels a sample, images as they are", statistics.patches
        )


def _print_notes(console: Console, name: str, statistics: DataStatistics) -> None:
    """Print what is right and yet unlikely to be meant."""
    if statistics.unread:
        fields = [shorten_text(field, 40) for field, _ in statistics.unread.most_common()]
        console.print(f"fields that task {name} does not read: {shorten_list(fields, 12)}")
    if statistics.unreadable:
        console.print(
            f"plain replies in {statistics.unreadable:,} of {_count(statistics.samples, 'sample')}: they have no "
            "<answer>, so an evaluation would read none. To put the dialogue's form around them, set "
            "task.replies=answer."
        )


def _print_first_sample(console: Console, title: str, text: str) -> None:
    console.print(f"{title}:")
    console.print(text)


def _print_lengths(console: Console, name: str, lengths: Lengths) -> None:
    _print_histogram(console, f"tokens a sample, by {name} (context {lengths.context:,})", lengths.tokens)
    # A model without images has lengths in tokens alone.
    if any(lengths.patches):
        _print_histogram(console, f"patches a sample, by the encoder of {name}", lengths.patches)
    cut = len(lengths.list_too_long())
    console.print(
        f"longer than the context: {cut:,} of {_count(len(lengths.tokens), 'sample')}, made smaller by the pixel "
        f"budget: {_count(lengths.smaller, 'image')}"
    )
    if lengths.framing:
        console.print(
            f"names of tokens that frame turns, such as <|im_end|>, in {_count(lengths.framing, 'sample')}: they are "
            "read as plain text"
        )


def _print_histogram(console: Console, title: str, values: Sequence[int]) -> None:
    """Print a histogram of at most ten bars, each of the same range of values."""
    if not values:
        return
    low, high = min(values), max(values)
    # Rounded up, so that the last bar still holds the largest value.
    step = max(1, -(-(high - low + 1) // _MAX_BARS))
    counts = [0] * ((high - low) // step + 1)
    for value in values:
        counts[(value - low) // step] += 1
    ordered = sorted(values)
    console.print(f"{title}: least {low:,}, median {ordered[len(ordered) // 2]:,}, most {high:,}")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    block = "\N{FULL BLOCK}" if console.encoding.lower().startswith("utf") else "#"
    for number, count in enumerate(counts):
        first = low + number * step
        bar = block * max(round(_BAR_WIDTH * count / max(counts)), count > 0)
        table.add_row(f"{first:,} to {first + step - 1:,}" if step > 1 else f"{first:,}", f"{count:,}", bar)
    console.print(table)
