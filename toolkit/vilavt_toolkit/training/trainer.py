"""How a stage runs: from where it goes on, under which trainer, what it saves and when."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.run_folder import holds_run, set_aside
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.recipe import CheckedRecipe, dump
from vilavt_toolkit.config.schema import RLSection, TrainSection
from vilavt_toolkit.errors import UsageError, VilavtError
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.callbacks.progress_bar import StepBar
from vilavt_toolkit.training.callbacks.step_timer import Clock
from vilavt_toolkit.training.resume import capture, check, restore
from vilavt_toolkit.training.stage import StageModule, StoppedBetweenSteps
from vilavt_toolkit.utils.files import write_json, write_text
from vilavt_toolkit.utils.versions import versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe and its run."""

    recipe: CheckedRecipe
    section: TrainSection | RLSection
    run: Path
    total: int
    """Optimizer steps in all."""
    key: str
    """The recipe's section."""


@dataclass(frozen=True)
class Beginning:
    """Where a stage begins: at step 0, or at a checkpoint of its run."""

    folder: Path | None
    step: int
    state: TrainingState | None
    interruption: Interruption
    trainer: pl.Trainer


def begin(stage: Stage, resume: bool) -> Beginning | None:
    """Seed everything and find where the stage begins; None where all steps are taken. Raises VilavtError."""
    numbers = stage.recipe.recipe.train
    if numbers.threads:
        torch.set_num_threads(numbers.threads)
    pl.seed_everything(stage.recipe.recipe.seed, workers=True, verbose=False)
    folder = checkpoints.find(stage.run) if resume else None
    step = 0 if folder is None else checkpoints.read_step(folder)
    if step >= stage.total:
        log.warning("%s has taken all %d steps; raise %s.steps to go on.", stage.run, stage.total, stage.key)
        return None
    if folder is None:
        holds_run(stage.run)  # refused before anything slow, not after
    state = None if folder is None else checkpoints.load_state(folder)
    interruption = Interruption()
    trainer = _trainer(stage, _Keeper(stage, state, interruption))
    return Beginning(folder, step, state, interruption, trainer)


def run_stage(
    stage: Stage,
    beginning: Beginning,
    module: StageModule,
    loader: Callable[[], Iterable[Any]],
    before: Callable[[], None] | None = None,
) -> Path:
    """Take the stage's steps and return its folder; `before` runs once the folder is the stage's own."""
    optimizer = module.configure_optimizers()
    if beginning.state is not None:
        check(beginning.state, optimizer, stage.key)
    batches, interruption = loader(), beginning.interruption
    with interruption:
        # Only now: what fails before leaves an earlier run where it was, and no half of a new one.
        if beginning.folder is None:
            set_aside(stage.run)
        write_text(stage.run / "recipe.yaml", dump(stage.recipe))
        write_json(stage.run / "versions.json", versions())
        if before is not None:
            before()
        _fit(beginning.trainer, module, batches, interruption)
    if interruption.asked:  # after the last step: what was to come next is not wanted
        raise interruption.exit()
    return stage.run


def _fit(trainer: pl.Trainer, module: StageModule, batches: Iterable[Any], interruption: Interruption) -> None:
    try:
        trainer.fit(module, batches)
    except SystemExit as error:  # what Lightning makes of an interrupt, and of a signal in the last step
        if interruption.asked or isinstance(error.__context__, KeyboardInterrupt):
            raise interruption.exit() from error
        raise


class _Keeper(pl.Callback):
    """Saves checkpoints as the recipe says and when interrupted, and puts the training state back when resuming."""

    def __init__(self, stage: Stage, state: TrainingState | None, interruption: Interruption) -> None:
        self.stage, self.state, self.interruption = stage, state, interruption

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning keeps this in its own checkpoints: the step that metrics are logged at.
        trainer.fit_loop.epoch_loop._batches_that_stepped = cast(StageModule, pl_module).start

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not earlier: making the data loader's iterator draws a random number.
        if self.state is not None:
            restore(self.state, trainer.optimizers[0], _scaler(trainer))
            cast(StageModule, pl_module).load_state(self.state)
            self.state = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module, asked = cast(StageModule, pl_module), self.interruption.asked
        if asked or module.step % self.stage.section.checkpoint_every == 0 or module.step == self.stage.total:
            self._save(trainer, module)
            if asked:
                raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        module = cast(StageModule, pl_module)
        stopped = isinstance(exception, StoppedBetweenSteps)
        if stopped or (isinstance(exception, VilavtError) and module.between_steps and module.step > module.start):
            self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: StageModule) -> None:
        state = capture(trainer.optimizers[0], _scaler(trainer), module.state())
        folder = checkpoints.save(self.stage.run, module.model, self.stage.recipe, module.step, state)
        if self.interruption.asked or module.between_steps:
            log.warning("%s is saved; go on from it with --resume.", folder)


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _trainer(stage: Stage, keeper: _Keeper) -> pl.Trainer:
    # Its advice and its dealings with torch's tree utilities are not the user's.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec", module="pytorch_lightning")
    # What is frozen, and everything in reinforcement.
    warnings.filterwarnings("ignore", message=".*in eval mode", module="pytorch_lightning")
    numbers = stage.recipe.recipe.train
    on_gpu = numbers.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if numbers.precision == "16-mixed" and not on_gpu:
        raise UsageError("train.precision: 16-mixed needs a CUDA GPU; use bf16-mixed or 32-true here.")
    try:
        return pl.Trainer(
            accelerator=numbers.accelerator,
            devices=1,
            precision=numbers.precision,
            max_epochs=1,
            logger=_logger(stage.run),
            callbacks=[StepBar(), Clock(stage.run), keeper],
            log_every_n_steps=stage.section.log_every,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"train.accelerator {numbers.accelerator!r}: {reason}. Use auto, cpu or gpu.") from error


def _logger(run: Path) -> Logger:
    if importlib.util.find_spec("tensorboard") is None:
        log.warning("tensorboard is not installed; metrics go to %s as CSV.", run / "logs")
        return CSVLogger(str(run), name="logs", version="")
    return TensorBoardLogger(str(run), name="logs", version="")
