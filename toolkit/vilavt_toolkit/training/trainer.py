"""Running a stage: from its start, or a checkpoint of its run, to its last step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from vilavt_toolkit.checkpoints.facts import read_step
from vilavt_toolkit.checkpoints.native import find_checkpoint, write_recipe
from vilavt_toolkit.checkpoints.run_lock import RunLock
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.training.agreement import AgreedBatches
from vilavt_toolkit.training.callbacks.checkpointing import CheckpointCallback
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.callbacks.progress_bar import StepProgressBar
from vilavt_toolkit.training.callbacks.step_timer import StepTimer
from vilavt_toolkit.training.callbacks.throughput import Throughput
from vilavt_toolkit.training.metric_log import MetricLog, check_trackers
from vilavt_toolkit.training.resume import check_state
from vilavt_toolkit.training.resume_changes import check_settings
from vilavt_toolkit.training.stage import Stage, StageModule
from vilavt_toolkit.training.strategies import (
    build_strategy,
    connect_processes,
    find_environment,
    find_lightning_precision,
)
from vilavt_toolkit.training.world import World, check_devices
from vilavt_toolkit.utils.files import write_json
from vilavt_toolkit.utils.git_state import describe_git_state
from vilavt_toolkit.utils.versions import collect_versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageStart:
    """The point where a stage starts: step 0, or a checkpoint of its run; and what runs it from there."""

    folder: Path | None
    """The checkpoint to resume from; None at step 0."""
    step: int
    lock: RunLock | None
    """None in all processes but the first."""
    checkpointing: CheckpointCallback
    """Holds the checkpoint's training state until the first step. Nothing else may, for it is as large as the model."""
    interruption: Interruption
    trainer: pl.Trainer


def prepare_stage(
    stage: Stage, resume: bool, lock: RunLock | None, interruption: Interruption, allow_changes: bool = False
) -> StageStart | None:
    """Connect the processes, seed all random numbers and find where the stage starts; None if all steps are taken.

    `lock` is that of the stage's run folder. It is held, and signals are handled, until the stage has ended. A run is
    resumed under other settings that count only with `allow_changes`. Raises VilavtError.
    """
    settings = stage.recipe.recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    pl.seed_everything(stage.recipe.recipe.seed, workers=True, verbose=False)
    checkpointing = CheckpointCallback(stage, interruption)
    trainer = _build_trainer(stage, checkpointing)
    connect_processes(trainer.strategy, settings)
    if len(found := set(stage.world.gather(settings.strategy))) > 1:
        raise UsageError(
            f"train.strategy auto is {' and '.join(sorted(found))}, because the machines have not the same memory. "
            "Set train.strategy to one of them."
        )
    # Found once for all: another process may not see yet what the last run wrote into a folder on the network.
    folder = stage.world.share(find_checkpoint(stage.run) if resume and stage.world.is_first else None)
    step = 0 if folder is None else read_step(folder)
    if step >= stage.total_steps:
        log.warning(
            "%s has taken all %d steps. Raise %s.steps to go on.", stage.run, stage.total_steps, stage.section_key
        )
        return None
    if folder is not None:
        check_settings(stage.recipe, folder, stage.section_key, allow_changes)
        checkpointing.state = load_training_state(folder)
    check_trackers(settings.trackers)
    return StageStart(folder, step, lock, checkpointing, interruption, trainer)


def run_stage(
    stage: Stage,
    start: StageStart,
    module: StageModule,
    build_loader: Callable[[], AbstractContextManager[Iterable[Any]]],
    prepare_run: Callable[[], None] | None = None,
) -> Path:
    """Take the stage's steps and return its run folder.

    `prepare_run` is called once the folder holds nothing of an earlier run. Raises VilavtError.
    """
    module.world = stage.world
    optimizer = module.configure_optimizers()
    if start.checkpointing.state is not None:
        check_state(start.checkpointing.state, optimizer, stage.section_key, module.weight_names)
    interruption = start.interruption
    loader = build_loader()
    if stage.world.size > 1:
        loader = AgreedBatches(loader, stage.world, interruption)
    with loader as batches, interruption.deferred():
        # Last of all: what fails before, in any process, leaves an earlier run where it was, and no half of a new one.
        stage.world.wait()
        if start.lock is not None:
            facts = _begin_folder(stage, start, start.lock)
            if prepare_run is not None:
                prepare_run()
            module.metric_log = MetricLog(stage.run, stage.recipe.recipe.train.trackers, start.step)
            module.metric_log.start(stage.recipe.resolved, module.main_metric, facts)
            start.trainer.loggers = list(module.metric_log.loggers.values())
        stage.world.wait()
        try:
            _fit_module(start.trainer, module, batches, interruption)
        finally:
            if module.metric_log is not None:
                module.metric_log.finish()
    # A signal during the last step ends the program too: a command that would follow is not wanted.
    if interruption.is_requested:
        raise interruption.build_exit()
    return stage.run


def _begin_folder(stage: Stage, start: StageStart, lock: RunLock) -> dict[str, Any]:
    """Move an earlier run aside, unless it is resumed, and write what every run folder begins with.

    Returns the facts that trackers get beside the recipe: versions, and the state of git.
    """
    if start.folder is None:
        lock.move_run_aside()
    write_recipe(stage.run, stage.recipe)
    facts = {"versions": collect_versions(), "git": describe_git_state(Path.cwd())}
    for name, found in facts.items():
        write_json(stage.run / f"{name}.json", found)
    return facts


def _fit_module(trainer: pl.Trainer, module: StageModule, batches: Iterable[Any], interruption: Interruption) -> None:
    try:
        trainer.fit(module, batches)
    except SystemExit as error:
        # Lightning turns an interrupt into SystemExit(1). The caller gets what the signal means instead.
        if interruption.is_requested or isinstance(error.__context__, KeyboardInterrupt):
            raise interruption.build_exit() from error
        raise


def find_initial_checkpoint(stage: Stage, init_from: str) -> Path:
    """Find the checkpoint that a new run starts from; raises UsageError if it lies in the new run's own folder."""
    found = find_checkpoint(init_from)
    # An earlier run in that folder is moved aside when training starts, and the checkpoint with it.
    if found.resolve().is_relative_to(stage.run.resolve()):
        key = "run" if stage.section_key == "train" else f"{stage.section_key}.run"
        raise UsageError(
            f"{stage.section_key}.init_from {found} lies in {stage.run}, where the new run goes. Give another folder "
            f"with {key}."
        )
    return found


def weight_dtype(precision: str) -> torch.dtype:
    """Return the type of the weights under a precision as Lightning names it."""
    return torch.bfloat16 if precision == "bf16-true" else torch.float32


def _build_trainer(stage: Stage, checkpointing: CheckpointCallback) -> pl.Trainer:
    # Lightning's tips, and what it says about its own use of torch, are not for the user.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec", module="pytorch_lightning")
    # Frozen parts are in evaluation mode on purpose, and in reinforcement everything is.
    warnings.filterwarnings("ignore", message=".*in eval mode", module="pytorch_lightning")
    return make_trainer(
        stage.recipe.recipe.train,
        stage.world,
        # Made when the run's folder is free, since some trackers write at once.
        logger=False,
        callbacks=[StepProgressBar(), StepTimer(stage.run), Throughput(stage), checkpointing],
    )


def make_trainer(settings: TrainSection, world: World | None = None, **options: Any) -> pl.Trainer:
    """Make Lightning's trainer of one process, or of those of `world`.

    Raises UsageError if a device or the number format is not there.
    """
    world = world or World()
    if world.size > 1:
        check_devices(settings)
    is_on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if settings.precision == "16-mixed" and not is_on_gpu:
        raise UsageError("train.precision: 16-mixed needs a CUDA GPU. Use bf16-mixed or 32-true here.")
    environment = find_environment(world)
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices if world.size > 1 else 1,
            num_nodes=settings.nodes if world.size > 1 else 1,
            strategy=build_strategy(settings, world),
            plugins=None if environment is None else [environment],
            # The samples are dealt to the processes before they are batches.
            use_distributed_sampler=False,
            precision=find_lightning_precision(settings, world),
            max_epochs=1,
            # The module logs by itself, at the steps of the whole run.
            log_every_n_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
    # An accelerator whose own package is not installed raises ImportError.
    except (MisconfigurationException, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".!")
        others = " or ".join(name for name in ("auto", "cpu", "gpu") if name != settings.accelerator)
        raise UsageError(f"train.accelerator {settings.accelerator!r}: {reason}. Use {others}.") from error
