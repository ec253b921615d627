"""A training run: from a checked recipe to checkpoints in its folder."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from vilavt_toolkit.assemble import assemble
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.files import write_json, write_text
from vilavt_toolkit.loading import build_model
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.recipe import CheckedRecipe, dump
from vilavt_toolkit.schema import Part, TrainSection
from vilavt_toolkit.training import checkpoints
from vilavt_toolkit.training.bar import StepBar
from vilavt_toolkit.training.data import StepLoader, step_loader
from vilavt_toolkit.training.interrupt import Interruption
from vilavt_toolkit.training.resume import capture, check, restore
from vilavt_toolkit.training.sft import SupervisedModule
from vilavt_toolkit.versions import versions

log = logging.getLogger(__name__)


def train(recipe: CheckedRecipe, resume: bool = False) -> Path:
    """Train what a recipe says and return the run's folder; raises VilavtError."""
    section, run = recipe.recipe.train, checkpoints.run_folder(recipe.recipe.run)
    if section.threads:
        torch.set_num_threads(section.threads)
    pl.seed_everything(recipe.recipe.seed, workers=True, verbose=False)
    folder = checkpoints.find(run) if resume else None
    start = 0 if folder is None else checkpoints.read_step(folder)
    if start >= section.steps:
        log.warning("%s has taken all %d steps; raise train.steps to go on.", run, section.steps)
        return run
    if folder is None:
        checkpoints.holds_run(run)  # refused before anything slow, not after
    state = None if folder is None else checkpoints.load_state(folder)
    interruption = Interruption()
    trainer = _trainer(section, run, _Keeper(run, recipe, state, interruption))
    task: Task = _made(recipe.recipe.task)
    model = build_model(recipe) if folder is None else _resumed(recipe, folder)
    model.encoder.gradient_checkpointing = section.gradient_checkpointing
    if section.compile:
        model.encoder.compile_blocks()
    module = SupervisedModule(model, _made(section.optimizer), section, start)
    optimizer = module.configure_optimizers()
    if state is not None:
        check(state, optimizer)
    loader = step_loader(model, task, section, recipe.recipe.seed, start)
    with interruption:
        # Only now: what fails before leaves an earlier run where it was, and no half of a new one.
        if folder is None:
            checkpoints.set_aside(run)
        write_text(run / "recipe.yaml", dump(recipe))
        write_json(run / "versions.json", versions())
        _fit(trainer, module, loader)
    if interruption.asked:  # after the last step: what was to come next is not wanted
        raise KeyboardInterrupt
    return run


def _fit(trainer: pl.Trainer, module: SupervisedModule, loader: StepLoader) -> None:
    try:
        trainer.fit(module, loader)
    except SystemExit as error:  # what Lightning makes of an interrupt
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def _made(part: Part) -> Any:
    return part.entry.cls(part.config)


def _resumed(recipe: CheckedRecipe, folder: Path) -> VisualChatModel:
    model = assemble(recipe.recipe.model, str(recipe.path), saved=folder / "language_model")
    checkpoints.load_into(model, folder)
    return model


class _Keeper(pl.Callback):
    """Saves checkpoints as the recipe says and when interrupted, and puts the training state back when resuming."""

    def __init__(
        self,
        run: Path,
        recipe: CheckedRecipe,
        state: checkpoints.TrainingState | None,
        interruption: Interruption,
    ) -> None:
        self.run, self.recipe, self.state, self.interruption = run, recipe, state, interruption

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning keeps this in its own checkpoints: the step that metrics are logged at.
        trainer.fit_loop.epoch_loop._batches_that_stepped = cast(SupervisedModule, pl_module).start

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not earlier: making the data loader's iterator draws a random number.
        if self.state is not None:
            restore(self.state, trainer.optimizers[0], _scaler(trainer))
            self.state = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        section, asked = self.recipe.recipe.train, self.interruption.asked
        if asked or pl_module.step % section.checkpoint_every == 0 or pl_module.step == section.steps:
            state = capture(trainer.optimizers[0], _scaler(trainer))
            folder = checkpoints.save(self.run, pl_module.model, self.recipe, pl_module.step, state)
            if asked:
                log.warning("%s is saved; go on from it with --resume.", folder)
                raise KeyboardInterrupt


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _trainer(section: TrainSection, run: Path, keeper: _Keeper) -> pl.Trainer:
    # Its advice and its dealings with torch's tree utilities are not the user's.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec", module="pytorch_lightning")
    on_gpu = section.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if section.precision == "16-mixed" and not on_gpu:
        raise UsageError("train.precision: 16-mixed needs a CUDA GPU; use bf16-mixed or 32-true here.")
    try:
        return pl.Trainer(
            accelerator=section.accelerator,
            devices=1,
            precision=section.precision,
            max_epochs=1,
            logger=_logger(run),
            callbacks=[StepBar(), keeper],
            log_every_n_steps=section.log_every,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"train.accelerator {section.accelerator!r}: {reason}. Use auto, cpu or gpu.") from error


def _logger(run: Path) -> Logger:
    if importlib.util.find_spec("tensorboard") is None:
        log.warning("tensorboard is not installed; metrics go to %s as CSV.", run / "logs")
        return CSVLogger(str(run), name="logs", version="")
    return TensorBoardLogger(str(run), name="logs", version="")
