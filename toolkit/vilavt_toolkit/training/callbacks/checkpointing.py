"""Checkpoints while training: saved as the recipe says and when the run is stopped, put back when it is resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl

from vilavt_toolkit.checkpoints.native import save_checkpoint
from vilavt_toolkit.checkpoints.staging import link_best_checkpoint
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.errors import RunError, VilavtError
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.callbacks.soundness import Soundness
from vilavt_toolkit.training.resume import capture_state, restore_state, seed_rank
from vilavt_toolkit.training.saving import CheckpointWriter, SavedTensors, list_weights
from vilavt_toolkit.training.stage import Stage, StageModule, StoppedBetweenSteps
from vilavt_toolkit.training.world import agreeing, is_agreed
from vilavt_toolkit.utils.text import shorten_text

log = logging.getLogger(__name__)


class CheckpointCallback(pl.Callback):
    """Saves checkpoints of a stage, and restores its training state at the first step of a resumed run.

    Lightning's own checkpoints are pickles of the whole module. These are folders that load without this code.
    """

    def __init__(self, stage: Stage, interruption: Interruption) -> None:
        self.stage, self.interruption = stage, interruption
        self.state: TrainingState | None = None
        """The state to put back; None in a new run, and once it is put back."""
        self.facts: dict[str, Any] = {}
        """Plain data that every checkpoint keeps with its training state, by key."""
        self.best_step: int | None = None
        """The step of the best checkpoint by a validation, which is kept; None without validations."""
        self._is_best = False
        self._writer = CheckpointWriter(stage)
        self._best_to_link: int | None = None
        self._soundness = Soundness()
        self._previous_step, self._told_step = 0, -1
        self._has_begun = False
        self._tried_step: int | None = None
        self._newest: Path | None = None

    def mark_best(self, step: int, is_saved: bool) -> None:
        """Let `step` be the best one so far: its checkpoint is linked, and saved first if it is not `is_saved`."""
        self.best_step = step
        if is_saved and self.stage.world.is_first:
            link_best_checkpoint(self.stage.run, step)
        self._is_best = not is_saved

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stage.world.size > 1:
            self.interruption.replace_handlers()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not earlier: whatever draws random numbers before the first step must not change those of the step.
        if self._has_begun:
            return
        module = cast(StageModule, pl_module)
        self._put_back(trainer, module)
        self._previous_step = module.start_step
        self._has_begun = True

    def _put_back(self, trainer: pl.Trainer, module: StageModule) -> None:
        """Put the state of a resumed run back; raises RunError if it is damaged."""
        # A new run's first process goes on with the numbers that made the weights.
        seed_rank(self.stage.recipe.recipe.seed, self.stage.world, module.start_step)
        if self.state is None:
            self._soundness.begin(module, None)
            return
        try:
            key, scaler, world = self.stage.section_key, _grad_scaler(trainer), self.stage.world
            restore_state(self.state, trainer.optimizers[0], key, scaler, world, module.weight_names)
            module.load_state(self.state)
            self._soundness.begin(module, self.state.data.get("soundness"))
        # Whoever takes a part of the state finds out what is wrong with it, each in an exception of its own.
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            reason = shorten_text(" ".join(f"{type(error).__name__}: {error}".split()))
            raise RunError(
                f"step {module.start_step} of {self.stage.run}: its training state is damaged ({reason}). Remove this "
                "checkpoint to resume from the one before."
            ) from error
        self.state = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module, is_stopping = cast(StageModule, pl_module), self.interruption.agree(self.stage.world)
        self._soundness.judge_step(module)
        is_last = is_stopping or module.step == self.stage.total_steps or trainer.should_stop
        is_due = module.step % self.stage.section.checkpoint_every == 0
        # A run that ends early ends in a checkpoint too.
        if is_last or is_due or self._is_best:
            self._save_checkpoint(trainer, module, in_background=not is_last)
        else:
            self._finish_pending(module, waits=False)
        if is_stopping:
            self._tell_newest()
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the last whole step if an error, or a request to stop, came behind it."""
        module = cast(StageModule, pl_module)
        is_stopped = isinstance(exception, StoppedBetweenSteps)
        # A sample that cannot be read or a reward that raises has changed no weight: no step before it need be lost.
        is_failed = isinstance(exception, Exception) and module.is_between_steps and module.step > module.start_step
        # Processes save together. One that meets an error alone would wait for the others, who are in the next step.
        is_together = is_stopped or self.stage.world.size == 1 or is_agreed(exception)
        if not is_together or not (is_stopped or isinstance(exception, Exception)):
            return
        step = self._writer.pending_step
        try:
            self._finish_pending(module)
            if not (is_stopped or is_failed):
                return
            step = module.step
            # It may be saved already, or its saving may be what failed. A state that is not put back is a saved one.
            if self._tried_step != step and self.state is None:
                self._save_checkpoint(trainer, module)
        except VilavtError as error:
            # The first error is the one to end with.
            log.warning("step %s is not saved: %s", step, error)
        self._tell_newest()

    def _save_checkpoint(self, trainer: pl.Trainer, module: StageModule, in_background: bool = False) -> None:
        """Save the step, behind the one that is still being written; raises VilavtError, the same in all processes.

        With `in_background` it need not be written yet, if the recipe says so.
        """
        self._finish_pending(module)
        self._tried_step = module.step
        self._best_to_link, self._is_best = module.step if self._is_best else None, False
        world, sound = self.stage.world, self._soundness.step
        optimizer, scaler = trainer.optimizers[0], _grad_scaler(trainer)
        state = capture_state(optimizer, scaler, module.capture_state(), world, module.weight_names)
        state.data.update(self.facts, soundness=self._soundness.to_json())
        in_background = in_background and self.stage.section.save_in_background
        kept = (sound, self.best_step)
        if module.model.encodes_always or in_background:
            weights = list_weights(module.model, module.list_means())
            tensors = SavedTensors(weights, state.tensors, module.model.encodes_always)
            self._writer.begin(module.step, module.model, state, tensors, kept, in_background)
        else:
            self._save_from_first(module, state, kept)
        self._finish_pending(module, waits=not in_background)
        self._soundness.add_checkpoint(module)
        # The newest are kept in any case. A sound one behind them says that training has diverged since.
        if sound is not None and sound < self._previous_step and sound != self._told_step and world.is_first:
            self._told_step = sound
            log.warning(
                "training seems to have diverged since step %d, whose checkpoint is kept beside the newest in %s.",
                sound,
                self.stage.run,
            )
        self._previous_step = module.step

    def _save_from_first(self, module: StageModule, state: TrainingState, kept: tuple[int | None, ...]) -> None:
        """Let the first process write the checkpoint, of which it has everything."""
        world, error = self.stage.world, None
        if world.is_first:
            try:
                with module.averaged_weights():
                    self._newest = save_checkpoint(
                        self.stage.run,
                        module.model,
                        self.stage.recipe,
                        module.step,
                        state,
                        kept,
                        self.stage.section.keep_checkpoints,
                    )
            except VilavtError as found:
                error = found
        # The others wait until it is written, and end with the first process if it cannot be.
        if failed := world.agree_on_error(error):
            with agreeing():
                raise failed
        self._link_best()

    def _finish_pending(self, module: StageModule, waits: bool = True) -> None:
        """Give the checkpoint that is being written its place; without `waits` only if all processes have written it.

        Raises VilavtError, the same in all processes.
        """
        if self._writer.pending_step is None or not (waits or self._writer.is_written()):
            return
        try:
            self._newest = self._writer.finish() or self._newest
        except VilavtError:
            # A full disk has no place for this step either.
            self._tried_step = module.step
            raise
        self._link_best()

    def _link_best(self) -> None:
        if self._best_to_link is not None and self.stage.world.is_first:
            link_best_checkpoint(self.stage.run, self._best_to_link)
        self._best_to_link = None

    def _tell_newest(self) -> None:
        if self._newest is not None:
            log.warning("%s is saved. Go on from it with --resume.", self._newest)


def _grad_scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
