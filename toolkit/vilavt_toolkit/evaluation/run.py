"""An evaluation from a run or recipe to its files: items, summary and an example, written and printed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.checkpoints.facts import FORMAT, read_step
from vilavt_toolkit.checkpoints.loading import best_device, build_model, load_matching_weights
from vilavt_toolkit.checkpoints.native import computing_dtype, find_checkpoint, load_checkpoint, load_checkpoint_recipe
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.evaluation.arms import EvaluatedItem, evaluate_arms, write_items
from vilavt_toolkit.evaluation.folder import ITEMS_FILE, SUMMARY_FILE, EvaluationFolder, name_evaluation_folder
from vilavt_toolkit.evaluation.summary import (
    build_summary_table,
    format_differences,
    format_warnings,
    summarise_results,
)
from vilavt_toolkit.evaluation.untaught import find_untaught_arms
from vilavt_toolkit.models.meta import parse_dtype
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.report.trace import draw_trace
from vilavt_toolkit.training.trainer import weight_dtype
from vilavt_toolkit.utils.files import atomic_write, write_json
from vilavt_toolkit.utils.text import shorten_list
from vilavt_toolkit.utils.versions import collect_versions

log = logging.getLogger(__name__)

_STOPPING = ("model.stopping=", "model.stopping.", "model.stopping[")


def evaluate_run(
    run: str | os.PathLike[str], overrides: Sequence[str], console: Console, name: str | None = None
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run and return the summary; raises VilavtError.

    The files are written into the run's folder `eval`, or into `eval-NAME`.
    """
    out = name_evaluation_folder(expand_home(run), name)
    # Overrides of `task` and `eval` reach the recipe but not the model, which is read as it was trained.
    folder, allowed = find_checkpoint(run), _check_overrides(overrides)
    stopping = [override for override in allowed if override.startswith(_STOPPING)]
    recipe = load_checkpoint_recipe(folder, allowed)
    model, _ = load_checkpoint(folder, best_device(), choose_dtype(recipe), overrides=stopping)
    taught = load_checkpoint_recipe(folder, ())
    return _evaluate_model(model, recipe, out, _describe_provenance(folder, recipe), console, taught)


def evaluate_recipe(recipe: CheckedRecipe, console: Console, name: str | None = None) -> dict[str, Any]:
    """Evaluate the model that a recipe starts training from, and return the summary; raises VilavtError.

    That is another project's checkpoint, which `model.checkpoint` names, its weights in the type of `train.precision`;
    or the run that `train.init_from` names.
    """
    checkpoint = recipe.recipe.model.checkpoint
    run = expand_home(recipe.recipe.run)
    out = name_evaluation_folder(run, name)
    if not checkpoint and (run / "checkpoints").is_dir():
        # What `train.init_from` names is then no longer its model, and its summary would replace the trained run's.
        raise UsageError(f"{recipe.path} has been trained. Evaluate its run: vilavt eval {run}")
    if not checkpoint and recipe.recipe.train.init_from:
        return _evaluate_initial_run(recipe, out, console)
    if not checkpoint:
        raise UsageError(
            f"{recipe.path} names nothing to evaluate. Set model.checkpoint or train.init_from, or train it and "
            f"evaluate its run: vilavt eval {run}"
        )
    # Parts that the checkpoint does not hold are drawn at random, as training would draw them.
    torch.manual_seed(recipe.recipe.seed)
    dtype = choose_dtype(recipe) or weight_dtype(recipe.recipe.train.precision)
    model = build_model(recipe, dtype).to(best_device(), dtype).eval()
    facts = {"checkpoint": checkpoint, "step": 0, **_describe_settings(recipe)}
    return _evaluate_model(model, recipe, out, facts, console)


def _evaluate_initial_run(recipe: CheckedRecipe, out: Path, console: Console) -> dict[str, Any]:
    """Evaluate the run that a recipe would start training from, under the recipe's own stopping policies."""
    folder = find_checkpoint(recipe.recipe.train.init_from)
    model, new = load_matching_weights(recipe, folder, other_stopping=True)
    if new:
        raise UsageError(
            f"{folder} holds no weights {shorten_list(new)}, which a stopping policy of {recipe.path} must learn "
            f"first: vilavt train {recipe.name}"
        )
    log.warning("%s is evaluated untrained, with the weights of %s.", recipe.path, folder)
    return _evaluate_model(
        model.to(best_device(), choose_dtype(recipe)).eval(), recipe, out, _describe_provenance(folder, recipe), console
    )


def _evaluate_model(
    model: VisualChatModel,
    recipe: CheckedRecipe,
    out: Path,
    provenance: dict[str, Any],
    console: Console,
    taught: CheckedRecipe | None = None,
) -> dict[str, Any]:
    """Evaluate a model, print the table and write the files; `taught` is the recipe that it was trained by."""
    task: Task = recipe.recipe.task.build()
    check_sources(task, recipe.recipe.model.source, recipe.recipe.eval.split)
    arms = recipe.recipe.eval.arms
    example, folder = _ExampleKeeper("modulated" if "modulated" in arms else arms[0]), EvaluationFolder(out)

    def keep_item(item: EvaluatedItem, session: Session) -> None:
        folder.add_item(item)
        # The example is chosen on the way, because sessions with their images are not kept.
        example.keep_better(item, session)

    try:
        results = evaluate_arms(model, task, recipe.recipe.eval, recipe.recipe.seed, on_item=keep_item)
    except BaseException:
        # Whatever ended it, an interruption too.
        if folder.path is not None:
            log.warning("the evaluation did not end. The items that did are in %s.", folder.path / ITEMS_FILE)
        raise
    finally:
        folder.close()
    untaught = find_untaught_arms(taught) if taught is not None else ()
    summary = {**summarise_results(results, task, recipe.recipe.seed, untaught), **provenance}
    # Printed first: what took hours to measure is shown even if the disk is full.
    for line in [*format_warnings(summary), build_summary_table(summary), *format_differences(summary)]:
        console.print(line)
    unfinished = folder.require_writable()
    # In the task's order, in place of the order in which they ended.
    write_items(unfinished / ITEMS_FILE, results)
    write_json(unfinished / SUMMARY_FILE, summary)
    shown = example.draw_and_describe(unfinished, out)
    folder.finish()
    console.print(f"{shown}run: {out.parent}   items: {out / ITEMS_FILE}   summary: {out / SUMMARY_FILE}")
    return summary


def choose_dtype(recipe: CheckedRecipe) -> torch.dtype | None:
    """Return the type of the weights in an evaluation: that of `eval.dtype`; None for the type that they are saved in.

    `trained` is the type that training computes in.
    """
    chosen = recipe.recipe.eval.dtype
    return computing_dtype(recipe) if chosen == "trained" else parse_dtype(chosen)


def _check_overrides(overrides: Sequence[str]) -> Sequence[str]:
    """Refuse overrides that would change the trained model; only questions and stopping policies may change."""
    # A stopping policy acts on a finished model, so that one run can be measured under several.
    for override in overrides:
        if not override.startswith(("eval.", "task.", "seed=", *_STOPPING)):
            raise UsageError(
                f"{override!r} cannot change after training. Only eval.*, task.*, model.stopping and seed can."
            )
    return overrides


def _describe_provenance(folder: Path, recipe: CheckedRecipe) -> dict[str, Any]:
    return {"checkpoint": str(folder), "step": read_step(folder), **_describe_settings(recipe)}


def _describe_settings(recipe: CheckedRecipe) -> dict[str, Any]:
    # The format says which names the recipe's keys have, for a later version that compares evaluations.
    facts = {"seed": recipe.recipe.seed, "recipe": recipe.resolved}
    return {**facts, "format": FORMAT, "versions": collect_versions()}


class _ExampleKeeper:
    """Keeps one item of an arm as an example: the first with a zoom, right or wrong, else the first of all."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.example: tuple[EvaluatedItem, Session] | None = None

    def keep_better(self, item: EvaluatedItem, session: Session) -> None:
        """Keep the item if it is a better example than the one kept so far."""
        if item.arm == self.arm and (self.example is None or (item.calls and not self.example[0].calls)):
            self.example = item, session

    def draw_and_describe(self, folder: Path, target: Path) -> str:
        """Draw the example's trace into `folder`, save its originals beside it, and return a line about it.

        `target` is the name that the folder will have. Empty if there is nothing to draw.
        """
        if self.example is None:
            return ""
        item, session = self.example
        # Without images there is nothing to draw.
        if not session.sources:
            return ""
        answer = build_answer(session)
        draw_trace(replace(answer.trace, is_right=item.score >= 1), folder / "example.png")
        # The originals without drawing, so that a user has files to ask about at once.
        for number, source in enumerate(session.sources):
            with atomic_write(folder / f"scene{number or ''}{source.suffix}") as scene:
                source.save(scene)
        sample = item.sample
        return f"{sample.question} -> {answer} (right: {sample.answer}); its trace: {target / 'example.png'}\n"
