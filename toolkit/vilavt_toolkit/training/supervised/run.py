"""A supervised training run: from a checked recipe to checkpoints in its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import Part
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.lengths import check_lengths
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.models.assemble import assemble
from vilavt_toolkit.models.meta import listed_in_short
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.supervised.data import step_loader, step_sampler
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainer import Stage, begin, run_stage

log = logging.getLogger(__name__)


def train(recipe: CheckedRecipe, resume: bool = False) -> Path:
    """Train what a recipe says and return the run's folder; raises VilavtError."""
    section = recipe.recipe.train
    stage = Stage(recipe, section, run_folder(recipe.recipe.run), section.steps, "train")
    beginning = begin(stage, resume)
    if beginning is None:
        return stage.run
    task: Task = made(recipe.recipe.task)
    # Before weights are loaded: files that are refused are refused here.
    if not task.length("train"):
        raise UsageError(f"split 'train' of {recipe.recipe.task} has no samples; choose another task or files.")
    model = _model(recipe, stage, beginning.folder)
    if beginning.folder is None:
        check_lengths(model, task, "train")
    model.encoder.gradient_checkpointing = section.gradient_checkpointing
    if section.compile:
        model.encoder.compile_blocks()
    seed = recipe.recipe.seed

    def names(step: int) -> list[str]:
        return [task.sample("train", index).id for index in step_sampler(task, section, seed).indices(step)]

    module = SupervisedModule(model, made(section.optimizer), section, beginning.step, names)
    return run_stage(stage, beginning, module, lambda: step_loader(model, task, section, seed, beginning.step))


def _model(recipe: CheckedRecipe, stage: Stage, checkpoint: Path | None) -> VisualChatModel:
    """The model as the checkpoint to go on from has it, else as `train.start` does, else new."""
    start = recipe.recipe.train.start
    if checkpoint is None and not start:
        return build_model(recipe, dtype_of(recipe.recipe.train.precision))
    return restored(recipe, checkpoint or start_of(stage, start), resume=checkpoint is not None)


def start_of(stage: Stage, start: str) -> Path:
    """The checkpoint that a stage begins with, which must not be moved away with an earlier run; raises VilavtError."""
    found = checkpoints.find(start)
    if found.resolve().is_relative_to(stage.run.resolve()):
        key = "run" if stage.key == "train" else f"{stage.key}.run"
        raise UsageError(
            f"{stage.key}.start {found} lies in {stage.run}, where the new run goes; give another folder with {key}."
        )
    return found


def dtype_of(precision: str) -> torch.dtype:
    """The type that weights are kept in under a precision in Lightning's words."""
    return torch.bfloat16 if precision == "bf16-true" else torch.float32


def made(part: Part) -> Any:
    """The component that a part names."""
    return part.entry.cls(part.config)


def restored(recipe: CheckedRecipe, folder: Path, resume: bool = False) -> VisualChatModel:
    """The recipe's model with the weights of a checkpoint; raises VilavtError where they do not fit.

    Unless it is to `resume`, stopping policies may be others than the checkpoint's, and begin anew where it has none.
    """
    model, new = filled_from(recipe, folder, other_stopping=not resume)
    if new:
        log.warning("%s has no weights of the recipe's stopping policies; new are %s.", folder, listed_in_short(new))
    return model


def filled_from(recipe: CheckedRecipe, folder: Path, other_stopping: bool) -> tuple[VisualChatModel, list[str]]:
    """The recipe's model with a checkpoint's weights, and the names of those that `checkpoints.load_into` left new."""
    model = assemble(recipe.recipe.model, str(recipe.path), saved=folder)
    return model, checkpoints.load_into(model, folder, other_stopping=other_stopping)
