"""The reinforcement stage: from the first stage's run to checkpoints in a run folder of its own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from vilavt_toolkit.checkpoints.loading import build_model, find_new_parts, load_checkpoint_model
from vilavt_toolkit.checkpoints.native import write_model
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.checkpoints.run_lock import RunLock
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import RLSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.lengths import check_lengths
from vilavt_toolkit.data.row_budget import require_packing
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.data.splits import require_samples
from vilavt_toolkit.errors import InputError, RunError, UsageError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.reinforcement.module import PolicyParts, ReinforcementModule
from vilavt_toolkit.training.reinforcement.reference import Reference, trains_adapters_only
from vilavt_toolkit.training.reinforcement.rollouts import RolloutCollector
from vilavt_toolkit.training.resume_changes import check_data
from vilavt_toolkit.training.stage import Stage
from vilavt_toolkit.training.trainable import refuse_frozen_new, store_frozen
from vilavt_toolkit.training.trainer import StageStart, find_initial_checkpoint, prepare_stage, run_stage, weight_dtype
from vilavt_toolkit.training.world import require_single_process
from vilavt_toolkit.utils.limits import explained_limits

log = logging.getLogger(__name__)


class StepNumbers:
    """A loader of the numbers of the optimizer steps to take: the module collects its own data."""

    def __init__(self, start: int, total: int) -> None:
        self._numbers = range(start, total)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


def run_reinforcement(recipe: CheckedRecipe, resume: bool = False, allow_changes: bool = False) -> Path:
    """Train the model of a recipe's run further by reinforcement; return the new run folder. Raises VilavtError.

    With `resume` the run's newest checkpoint is continued, with `allow_changes` under other settings or samples too.
    """
    require_single_process(recipe.recipe.train, "vilavt rl")
    section, run = require_rl_section(recipe), rl_run_folder(recipe)
    stage = Stage(recipe, section, run, section.steps * section.inner_epochs, "rl")
    # Signals are handled before anything is started that they would have to end.
    with explained_limits("rl"), Interruption() as interruption, RunLock(run, "rl.run", create=not resume) as lock:
        start = prepare_stage(stage, resume, lock, interruption, allow_changes)
        return run if start is None else _reinforce(stage, section, start, allow_changes)


def _reinforce(stage: Stage, section: RLSection, start: StageStart, allow_changes: bool) -> Path:
    recipe, run = stage.recipe, stage.run
    if start.checkpointing.state is not None:
        _check_epochs(start.checkpointing.state, section, start.step)
    checkpoint = start.folder or _find_policy_checkpoint(stage, section)
    task: Task = recipe.recipe.task.build()
    # Counting opens the data files, so that unusable ones are refused before weights are loaded.
    require_samples(task, str(recipe.recipe.task), section.split)
    start.checkpointing.facts["data"] = check_data(start.checkpointing.state, task, section.split, allow_changes)
    check_sources(task, recipe.recipe.model.source, section.split)
    model = _build_model(recipe, checkpoint, resume=start.folder is not None)
    if section.pack_tokens is not None:
        require_packing(model, "rl")
    if start.folder is None:
        check_lengths(model, task, section.split, traces=False)
    apply_memory_settings(model, recipe.recipe.train)
    collector = RolloutCollector(model, task, section, recipe.recipe.seed)
    collector.check_stop = start.interruption.check_between_steps
    parts = PolicyParts(section.optimizer.build(), section.advantage.build(), section.policy_loss.build())
    module = ReinforcementModule(model, collector, parts, section, start.step, drawings=run)
    if section.kl:
        module.reference = _build_reference(stage, section, model, checkpoint, is_resumed=start.folder is not None)
    store_frozen(model, section, recipe.recipe.train.precision, stage.section_key)
    if checkpoint is None:
        refuse_frozen_new(model, section, find_new_parts(recipe.recipe.model), stage.section_key)

    def keep_reference() -> None:
        held = module.reference.held if module.reference is not None else None
        if held is not None and start.folder is None:
            _write_reference(checkpoint, held, recipe, run / "reference")

    return run_stage(
        stage, start, module, lambda: nullcontext(StepNumbers(start.step, stage.total_steps)), keep_reference
    )


def require_rl_section(recipe: CheckedRecipe) -> RLSection:
    """Return the recipe's section `rl`; raises UsageError if it has none."""
    if recipe.recipe.rl is None:
        raise UsageError(
            f"{recipe.path} has no section `rl:`. Add one, with at least steps, prompts_per_step and group_size."
        )
    return recipe.recipe.rl


def rl_run_folder(recipe: CheckedRecipe) -> Path:
    """Return the folder of a recipe's reinforcement run: `rl.run`, or RUN-rl; raises UsageError."""
    chosen, first = require_rl_section(recipe).run, expand_home(recipe.recipe.run)
    return expand_home(chosen) if chosen else first.with_name(f"{first.name}-rl")


def starts_from_base(recipe: CheckedRecipe, section: RLSection) -> bool:
    """Return True if a new run starts from `model.checkpoint`, because there is no run yet that it could start from."""
    trained = expand_home(recipe.recipe.run) / "checkpoints"
    return bool(recipe.recipe.model.checkpoint) and not section.init_from and not trained.is_dir()


def _find_policy_checkpoint(stage: Stage, section: RLSection) -> Path | None:
    """Find the checkpoint that the policy starts from: of `rl.init_from`, else of the recipe's run.

    None if neither is there and the recipe has `model.checkpoint`, which the policy then starts from.
    """
    recipe = stage.recipe.recipe
    if starts_from_base(stage.recipe, section):
        log.warning("there is no run %s yet: reinforcement starts from model.checkpoint.", recipe.run)
        return None
    return find_initial_checkpoint(stage, section.init_from or recipe.run)


def _build_model(recipe: CheckedRecipe, checkpoint: Path | None, resume: bool = False) -> VisualChatModel:
    if checkpoint is None:
        return build_model(recipe, weight_dtype(recipe.recipe.train.precision), copy=True)
    return load_checkpoint_model(recipe, checkpoint, resume)


def _build_reference(
    stage: Stage, section: RLSection, policy: VisualChatModel, checkpoint: Path | None, is_resumed: bool
) -> Reference:
    """Return the reference of a run whose policy started from `checkpoint`; raises RunError."""
    if section.kl_reference == "auto" and trains_adapters_only(policy):
        return Reference()
    # The policy's own checkpoint has moved on in a resumed run; the first one was kept.
    held = _build_model(stage.recipe, _find_reference(stage.run) if is_resumed else checkpoint)
    # Lightning converts the policy, which it knows as part of the module.
    return Reference(held.to(weight_dtype(stage.recipe.recipe.train.precision)), section.kl_reference == "cpu")


def _find_reference(run: Path) -> Path:
    """Find the weights that a run to be resumed started from; raises RunError."""
    if not (run / "reference").is_dir():
        raise RunError(
            f"{run} holds no weights to measure rl.kl from, because it was started with rl.kl=0 or with adapters "
            "alone. Resume with rl.kl=0 --allow-changes, with rl.kl_reference=auto if adapters alone are trained, or "
            "start a new run."
        )
    return run / "reference"


def _check_epochs(state: TrainingState, section: RLSection, step: int) -> None:
    """Raise RunError if a checkpoint counts its optimizer steps differently, or lacks the rollouts it needs."""
    saved = state.data.get("inner_epochs")
    if saved != section.inner_epochs:
        raise RunError(
            f"The checkpoint was made with rl.inner_epochs {saved} and the recipe has {section.inner_epochs}. Resume "
            f"with rl.inner_epochs={saved}."
        )
    # Between two inner epochs the rollouts are still learned from, and were saved.
    if step % section.inner_epochs and "pending" not in state.data:
        raise RunError(f"The checkpoint of step {step} lacks the rollouts it was learning from. Use another one.")


def _write_reference(checkpoint: Path | None, model: VisualChatModel, recipe: CheckedRecipe, target: Path) -> None:
    """Copy a checkpoint's model, or write `model` if there is no checkpoint, whole or not at all; raises InputError."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if checkpoint is None:
            temporary.mkdir(parents=True)
            write_model(temporary, model, recipe, step=0)
        else:
            # A copy, since the run that it is of may be trained further, moved or deleted.
            shutil.copytree(checkpoint, temporary, ignore=shutil.ignore_patterns("resume.*"))
        os.replace(temporary, target)
    except (OSError, shutil.Error) as error:
        raise InputError(f"{target} cannot be written ({error}). Free disk space, then start again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
