"""The supervised stage: from a checked recipe to checkpoints in its run folder."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, cast

import torch

from vilavt_toolkit.checkpoints.loading import build_model, find_new_parts, load_checkpoint_model
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.checkpoints.run_lock import RunLock
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.lengths import check_lengths
from vilavt_toolkit.data.row_budget import RowBudget, build_sample_budget, require_packing
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.data.splits import require_samples
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.callbacks.validation import Validation
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.resume_changes import check_data
from vilavt_toolkit.training.stage import Stage
from vilavt_toolkit.training.strategy_choice import resolve_strategy
from vilavt_toolkit.training.supervised.data import StepLoader, build_step_loader, build_step_sampler
from vilavt_toolkit.training.supervised.datasets import StepDatasets
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.sample_cache import SampleCache
from vilavt_toolkit.training.supervised.sample_key import build_sample_key
from vilavt_toolkit.training.supervised.validation import SPLIT, Validator
from vilavt_toolkit.training.trainable import refuse_frozen_new, store_frozen
from vilavt_toolkit.training.trainer import StageStart, find_initial_checkpoint, prepare_stage, run_stage, weight_dtype
from vilavt_toolkit.training.whole_model import WholeModel
from vilavt_toolkit.training.world import check_world, connected
from vilavt_toolkit.utils.cache_folder import cache_folder
from vilavt_toolkit.utils.limits import explained_limits


def run_supervised(recipe: CheckedRecipe, resume: bool = False, allow_changes: bool = False) -> Path:
    """Train a recipe's model on its task's traces and return the run folder; raises VilavtError.

    With `resume` the run's newest checkpoint is continued, with `allow_changes` under other settings or samples too.
    """
    world = check_world(recipe.recipe.train)
    recipe = resolve_strategy(recipe, world)
    section = recipe.recipe.train
    stage = Stage(recipe, section, expand_home(recipe.recipe.run), section.steps, "train", world)
    # The first process alone writes into the folder.
    locked = RunLock(stage.run, create=not resume) if world.is_first else nullcontext()
    # Signals are handled before anything is started that they would have to end.
    with explained_limits("train"), Interruption() as interruption, connected(world), locked as lock:
        start = prepare_stage(stage, resume, lock, interruption, allow_changes)
        return stage.run if start is None else _train(stage, section, start, allow_changes)


def _train(stage: Stage, section: TrainSection, start: StageStart, allow_changes: bool) -> Path:
    recipe, seed = stage.recipe, stage.recipe.recipe.seed
    task: Task = recipe.recipe.task.build()
    # Counting opens the data files, so that unusable ones are refused before weights are loaded.
    require_samples(task, str(recipe.recipe.task), "train")
    start.checkpointing.facts["data"] = check_data(start.checkpointing.state, task, "train", allow_changes)
    check_sources(task, recipe.recipe.model.source, "train")
    if section.validate_every is not None:
        require_samples(task, str(recipe.recipe.task), SPLIT)
        check_sources(task, recipe.recipe.model.source, SPLIT)
    model = _build_model(recipe, stage, start.folder)
    budget = build_sample_budget(section, model)
    if section.pack_tokens is not None:
        require_packing(model)
    if start.folder is None:
        check_lengths(model, task, "train", budget=budget)
    apply_memory_settings(model, section)
    if section.compile:
        model.vision.compile_blocks()

    def list_sample_ids(step: int) -> list[str]:
        sampler = build_step_sampler(task, section, seed, world=stage.world)
        return [task.sample("train", index).id for index in sampler.step_indices(step)]

    # One for all steps: it keeps the order of an epoch, which takes long to draw.
    dealt = build_step_sampler(task, section, seed, world=stage.world)

    def list_dataset_numbers(step: int) -> list[int]:
        return [task.dataset_of("train", index) for index in dealt.step_indices(step)]

    datasets = StepDatasets(task.datasets(), list_dataset_numbers) if task.datasets() else None
    module = SupervisedModule(model, section.optimizer.build(), section, start.step, list_sample_ids, datasets)
    store_frozen(model, section, section.precision, stage.section_key)
    if start.folder is None and not section.init_from:
        refuse_frozen_new(model, section, find_new_parts(recipe.recipe.model), stage.section_key)

    if section.validate_every is not None:
        _add_validation(stage, section, start, model, task)

    def build_loader() -> closing[StepLoader]:
        # Built late: preparing all samples takes minutes, and everything else is checked first.
        cache = _open_cache(recipe, model, task, budget)
        loader = build_step_loader(model, task, section, seed, start.step, stage.world, cache)
        loader.check_stop = start.interruption.check_between_steps
        return closing(loader)

    return run_stage(stage, start, module, build_loader)


def _add_validation(stage: Stage, section: TrainSection, start: StageStart, model: VisualChatModel, task: Task) -> None:
    """Add the callback that validates the model during training."""
    whole = _copy_sharded(model, stage, section)
    config = stage.recipe.recipe
    validator = Validator(model if whole is None else whole.model, task, section, config.eval, config.seed)
    callbacks: list[Any] = cast(Any, start.trainer).callbacks
    # Before the checkpoint of its step, which says how good the step is.
    place = callbacks.index(start.checkpointing)
    callbacks.insert(place, Validation(validator, section, start.checkpointing, whole))


def _copy_sharded(model: VisualChatModel, stage: Stage, section: TrainSection) -> WholeModel | None:
    """Return the model that validates beside one that will be sharded; None if it is not."""
    if stage.world.size == 1 or section.strategy != "fsdp2":
        return None
    return WholeModel(model, torch.bfloat16 if section.precision == "bf16-mixed" else None)


def _open_cache(
    recipe: CheckedRecipe, model: VisualChatModel, task: Task, budget: RowBudget | None
) -> SampleCache | None:
    """Return the cache in which samples that are prepared ahead wait for other runs; None if there is none."""
    section, root = recipe.recipe.train, cache_folder()
    if section.preprocess != "ahead" or not section.sample_cache or root is None:
        return None
    key = build_sample_key(recipe, model, task, budget)
    return SampleCache(root / "samples", key, round(section.sample_cache * 2**30))


def _build_model(recipe: CheckedRecipe, stage: Stage, checkpoint: Path | None) -> VisualChatModel:
    """Build the model with the weights of the checkpoint to resume from, else of `train.init_from`, else new ones."""
    init_from = recipe.recipe.train.init_from
    if checkpoint is not None:
        return load_checkpoint_model(recipe, checkpoint, resume=True)
    if init_from:
        return load_checkpoint_model(recipe, find_initial_checkpoint(stage, init_from))
    return build_model(recipe, weight_dtype(recipe.recipe.train.precision), copy=True)
