"""A run's evaluation: items, summary and an example, written into the run and shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vilavt_toolkit.chat.ask import answer_of
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.evaluation.runner import Item, evaluate, write_items
from vilavt_toolkit.evaluation.summary import lines, summarise, table
from vilavt_toolkit.files import write_json
from vilavt_toolkit.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.training import checkpoints
from vilavt_toolkit.versions import versions


def evaluate_run(run: str | os.PathLike[str], overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run and return the summary; raises VilavtError."""
    folder, allowed = checkpoints.find(run), _allowed(overrides)
    model, _ = checkpoints.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    recipe = load_recipe(folder / "recipe.yaml", allowed)
    task: Task = recipe.recipe.task.entry.cls(recipe.recipe.task.config)
    results = evaluate(model, task, recipe.recipe.eval, recipe.recipe.seed)
    summary = {**summarise(results, recipe.recipe.seed), **_provenance(folder, recipe)}
    out = Path(run) / "eval"
    write_items(out / "items.jsonl", results)
    write_json(out / "summary.json", summary)
    console.print(table(summary))
    for line in lines(summary):
        console.print(line)
    _show_example(results, out, console)
    console.print(f"run: {run}   items: {out / 'items.jsonl'}   summary: {out / 'summary.json'}")
    return summary


def _allowed(overrides: Sequence[str]) -> Sequence[str]:
    """Only what is asked may change, never the model that was trained."""
    for override in overrides:
        if not override.startswith(("eval.", "task.", "seed=")):
            raise UsageError(f"{override!r} cannot change after training; change eval.*, task.* or seed.")
    return overrides


def _provenance(folder: Path, recipe: CheckedRecipe) -> dict[str, Any]:
    return {
        "checkpoint": str(folder),
        "step": checkpoints.read_step(folder),
        "seed": recipe.recipe.seed,
        "recipe": recipe.resolved,
        "versions": versions(),
    }


def _show_example(results: Mapping[str, Sequence[Item]], out: Path, console: Console) -> None:
    """Draw one answered question: the first with a zoom, right or wrong, of the modulated arm if there is one."""
    items = results.get("modulated") or next(iter(results.values()))
    shown = next((item for item in items if item.session.calls), items[0])
    if not shown.session.sources:
        return
    answer = answer_of(shown.session, shown.sample.question)
    answer.draw(out / "example.png")
    console.print(
        f"{shown.sample.question} -> {answer} (right: {shown.sample.answer}); its trace: {out / 'example.png'}"
    )
