"""A run's evaluation: items, summary and an example, written into the run and shown."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vilavt_toolkit.chat.answer import answer_of
from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.loading import best_device, build_model
from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.evaluation.arms import Item, evaluate, write_items
from vilavt_toolkit.evaluation.summary import lines, summarise, table
from vilavt_toolkit.models.meta import listed_in_short
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.supervised.run import dtype_of, filled_from
from vilavt_toolkit.utils.files import atomic_write, write_json
from vilavt_toolkit.utils.versions import versions

log = logging.getLogger(__name__)

_STOPPING = ("model.stopping=", "model.stopping.", "model.stopping[")


def evaluate_run(run: str | os.PathLike[str], overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run and return the summary; raises VilavtError."""
    folder, allowed = checkpoints.find(run), _allowed(overrides)
    stopping = [override for override in allowed if override.startswith(_STOPPING)]
    model, _ = checkpoints.load(folder, best_device(), overrides=stopping)
    recipe = load_recipe(folder / "recipe.yaml", allowed)
    return _evaluated(model, recipe, Path(run) / "eval", _provenance(folder, recipe), console)


def evaluate_recipe(recipe: CheckedRecipe, console: Console) -> dict[str, Any]:
    """Evaluate what a recipe begins as, untrained, and return the summary; raises VilavtError.

    That is the checkpoint of others that `model.checkpoint` names, in the type that `train.precision` has weights in,
    or the run that `train.start` does.
    """
    name = recipe.recipe.model.checkpoint
    if not name and recipe.recipe.train.start:
        return _evaluated_start(recipe, console)
    if not name:
        raise UsageError(
            f"{recipe.path} names nothing to evaluate; set model.checkpoint or train.start, or train it and give its "
            "run."
        )
    torch.manual_seed(recipe.recipe.seed)
    model = build_model(recipe, dtype_of(recipe.recipe.train.precision)).to(best_device()).eval()
    facts = {"checkpoint": name, "step": 0, **_setting(recipe)}
    run = run_folder(recipe.recipe.run)
    return _evaluated(model, recipe, run / "eval", facts, console)


def _evaluated_start(recipe: CheckedRecipe, console: Console) -> dict[str, Any]:
    """Evaluate the run that a recipe would begin training with, under the recipe's own stopping policies."""
    run = run_folder(recipe.recipe.run)
    if (run / "checkpoints").is_dir():
        raise UsageError(f"{recipe.path} has been trained; evaluate its run: vilavt eval {run}")
    folder = checkpoints.find(recipe.recipe.train.start)
    model, new = filled_from(recipe, folder, other_stopping=True)
    if new:
        raise UsageError(
            f"{folder} holds no weights {listed_in_short(new)}, which a stopping policy of {recipe.path} has to learn "
            f"first: vilavt train {recipe.name}"
        )
    log.warning("%s is evaluated untrained, with the weights of %s.", recipe.path, folder)
    out = run / "eval"
    return _evaluated(model.to(best_device()).eval(), recipe, out, _provenance(folder, recipe), console)


def _evaluated(
    model: VisualChatModel, recipe: CheckedRecipe, out: Path, provenance: dict[str, Any], console: Console
) -> dict[str, Any]:
    task: Task = recipe.recipe.task.entry.cls(recipe.recipe.task.config)
    arms = recipe.recipe.eval.arms
    example = _Example("modulated" if "modulated" in arms else arms[0])
    results = evaluate(model, task, recipe.recipe.eval, recipe.recipe.seed, watch=example.see)
    summary = {**summarise(results, task, recipe.recipe.seed), **provenance}
    write_items(out / "items.jsonl", results)
    write_json(out / "summary.json", summary)
    console.print(table(summary))
    for line in lines(summary):
        console.print(line)
    example.show(out, console)
    console.print(f"run: {out.parent}   items: {out / 'items.jsonl'}   summary: {out / 'summary.json'}")
    return summary


def _allowed(overrides: Sequence[str]) -> Sequence[str]:
    """Only what is asked, and when the model stops looking, may change, never the model that was trained."""
    for override in overrides:
        if not override.startswith(("eval.", "task.", "seed=", *_STOPPING)):
            raise UsageError(
                f"{override!r} cannot change after training; change eval.*, task.*, model.stopping or seed."
            )
    return overrides


def _provenance(folder: Path, recipe: CheckedRecipe) -> dict[str, Any]:
    return {"checkpoint": str(folder), "step": checkpoints.read_step(folder), **_setting(recipe)}


def _setting(recipe: CheckedRecipe) -> dict[str, Any]:
    return {"seed": recipe.recipe.seed, "recipe": recipe.resolved, "versions": versions()}


class _Example:
    """One answered question of an arm: the first with a zoom, right or wrong, else the first."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.kept: tuple[Item, Session] | None = None

    def see(self, item: Item, session: Session) -> None:
        """Keep the item if it is the better example."""
        if item.arm == self.arm and (self.kept is None or (item.calls and not self.kept[0].calls)):
            self.kept = item, session

    def show(self, out: Path, console: Console) -> None:
        """Draw its trace and print what was asked and answered."""
        if self.kept is None or not self.kept[1].sources:
            return
        sample, file = self.kept[0].sample, out / "example.png"
        answer = answer_of(self.kept[1])
        answer.draw(file)
        # The bare originals beside it are something to ask about at once.
        for number, source in enumerate(self.kept[1].sources):
            with atomic_write(out / f"scene{number or ''}{source.suffix}") as scene:
                source.save(scene)
        console.print(f"{sample.question} -> {answer} (right: {sample.answer}); its trace: {file}")
