"""A reinforcement run: from the first stage's run to checkpoints in a folder of its own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import RLSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.lengths import check_lengths
from vilavt_toolkit.errors import InputError, RunError, UsageError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.reinforcement.module import PolicyModule, PolicyParts
from vilavt_toolkit.training.reinforcement.rollouts import Prompter
from vilavt_toolkit.training.supervised.run import dtype_of, made, restored, start_of
from vilavt_toolkit.training.trainer import Stage, begin, run_stage

log = logging.getLogger(__name__)


class StepNumbers:
    """The numbers of the optimizer steps to take, as a loader."""

    def __init__(self, start: int, total: int) -> None:
        self._numbers = range(start, total)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


def section_of(recipe: CheckedRecipe) -> RLSection:
    """The recipe's section `rl`; raises UsageError where there is none."""
    if recipe.recipe.rl is None:
        raise UsageError(f"{recipe.path} has no section `rl:`; add one, with at least steps, prompts and group.")
    return recipe.recipe.rl


def rl_folder(recipe: CheckedRecipe) -> Path:
    """The folder of a recipe's reinforcement run; raises UsageError."""
    chosen, first = section_of(recipe).run, run_folder(recipe.recipe.run)
    return run_folder(chosen) if chosen else first.with_name(f"{first.name}-rl")


def reinforce(recipe: CheckedRecipe, resume: bool = False) -> Path:
    """Reinforce a trained run as its recipe says and return the new run's folder; raises VilavtError."""
    section, run = section_of(recipe), rl_folder(recipe)
    stage = Stage(recipe, section, run, section.steps * section.inner_epochs, "rl")
    beginning = begin(stage, resume)
    if beginning is None:
        return run
    if beginning.state is not None:
        _check_epochs(beginning.state, section, beginning.step)
    start = beginning.folder or _start(stage, section)
    task: Task = made(recipe.recipe.task)
    task.length(section.split)  # files that are refused are refused here, before weights are loaded
    model = _model(recipe, start)
    if beginning.folder is None:
        check_lengths(model, task, section.split)
    model.encoder.gradient_checkpointing = recipe.recipe.train.gradient_checkpointing
    prompter = Prompter(model, task, section, recipe.recipe.seed)
    prompter.stop = lambda: beginning.interruption.asked
    reference = _model(recipe, start if beginning.folder is None else _reference(run)) if section.kl else None
    parts = PolicyParts(made(section.optimizer), made(section.advantage), made(section.policy_loss))
    module = PolicyModule(model, prompter, parts, section, beginning.step, reference, run)

    def keep_reference() -> None:
        if reference is not None and beginning.folder is None:
            _keep(start, reference, recipe, run / "reference")

    return run_stage(stage, beginning, module, lambda: StepNumbers(beginning.step, stage.total), keep_reference)


def _start(stage: Stage, section: RLSection) -> Path | None:
    """The checkpoint that the policy begins as: of `rl.start`, else of the recipe's run; None: `model.checkpoint`."""
    recipe = stage.recipe.recipe
    trained = run_folder(recipe.run) / "checkpoints"
    if recipe.model.checkpoint and not section.start and not trained.is_dir():
        log.warning("there is no run %s yet: reinforcement starts from model.checkpoint.", recipe.run)
        return None
    return start_of(stage, section.start or recipe.run)


def _model(recipe: CheckedRecipe, start: Path | None) -> VisualChatModel:
    if start is None:
        return build_model(recipe, dtype_of(recipe.recipe.train.precision))
    return restored(recipe, start)


def _reference(run: Path) -> Path:
    """What a run to be resumed started from; raises RunError."""
    if not (run / "reference").is_dir():
        raise RunError(f"{run} kept no weights that rl.kl could hold it to; resume with rl.kl=0, or start anew.")
    return run / "reference"


def _check_epochs(state: TrainingState, section: RLSection, step: int) -> None:
    """Raise RunError where a checkpoint's optimizer steps are counted otherwise, or it lacks its rollouts."""
    made_with = state.data.get("inner_epochs")
    if made_with != section.inner_epochs:
        raise RunError(
            f"The checkpoint was made with rl.inner_epochs {made_with} and the recipe has {section.inner_epochs}; "
            "resume with the same."
        )
    if step % section.inner_epochs and "pending" not in state.data:
        raise RunError(f"The checkpoint of step {step} lacks the rollouts it was learning from; use another one.")


def _keep(checkpoint: Path | None, model: VisualChatModel, recipe: CheckedRecipe, target: Path) -> None:
    """Copy a checkpoint's model, or write it where there is no checkpoint, whole or not at all; raises InputError."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if checkpoint is None:
            temporary.mkdir(parents=True)
            checkpoints.write_model(temporary, model, recipe)
        else:
            shutil.copytree(checkpoint, temporary, ignore=shutil.ignore_patterns("resume.*"))
        os.replace(temporary, target)
    except (OSError, shutil.Error) as error:
        raise InputError(f"{target} cannot be written ({error}); make room, then start again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
