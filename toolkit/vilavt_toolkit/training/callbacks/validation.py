"""Validation every few steps: its metrics, the best checkpoint by one of them, and an end when none gets better."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.generation.model_lock import eval_mode
from vilavt_toolkit.training.callbacks.checkpointing import CheckpointCallback
from vilavt_toolkit.training.stage import StoppedBetweenSteps
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.validation import ScoredDialogue, TargetSums, Validator, select_drawn
from vilavt_toolkit.training.whole_model import WholeModel

log = logging.getLogger(__name__)

_STATE_KEY = "validation"


class Validation(pl.Callback):
    """Validates every `train.validate_every` steps and at the last one, before the step's checkpoint is saved.

    A validation leaves weights and random numbers as they are, so that a run learns the same with and without it.
    """

    def __init__(
        self,
        validator: Validator,
        section: TrainSection,
        checkpointing: CheckpointCallback,
        whole: WholeModel | None = None,
    ) -> None:
        """`whole` is where the validator's model gets its weights from those that training shards."""
        self.validator, self.section, self.checkpointing = validator, section, checkpointing
        self._whole = whole
        state = checkpointing.state.data if checkpointing.state is not None else {}
        saved: Mapping[str, Any] = state.get(_STATE_KEY) or {}
        self.best: float | None = saved.get("best")
        """The best value of the metric that `train.best_by` names, greater being better; None before the first."""
        self.best_step: int | None = saved.get("best_step")
        self.since_best: int = saved.get("since_best", 0)
        """Validations since the best one."""
        self._validated_step: int | None = saved.get("step")
        checkpointing.best_step = self.best_step
        self._keep_state()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take no step in a resumed run that had ended early."""
        if self._is_over():
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make up for a validation that the stop of a resumed run has cut off."""
        module = cast(SupervisedModule, pl_module)
        if module.step and module.step == module.start_step and self._is_due(module):
            self._validate(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate if it is due, unless the run was asked to stop."""
        module = cast(SupervisedModule, pl_module)
        # Asked of all processes: one that validates alone would wait for the others.
        interruption, world = self.checkpointing.interruption, self.checkpointing.stage.world
        if self._is_due(module) and not interruption.agree(world):
            # The step is whole: an error from here on costs none.
            module.is_between_steps = True
            self._validate(trainer, module)
            if self._is_over():
                trainer.should_stop = True

    def _is_due(self, module: SupervisedModule) -> bool:
        every = self.section.validate_every
        is_turn = every is not None and (module.step % every == 0 or module.step == module.total_steps)
        return is_turn and self._validated_step != module.step

    def _is_over(self) -> bool:
        patience = self.section.patience
        if patience is None or self.since_best < patience:
            return False
        log.warning(
            "training ends early: val/%s has not become better in %d validations since step %s, whose checkpoint is "
            "checkpoints/best. Raise train.patience to go on.",
            self.section.best_by,
            self.since_best,
            self.best_step,
        )
        return True

    def _validate(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        rank, size = trainer.global_rank, trainer.world_size
        # A process that stops alone would leave the others waiting for its sums.
        self.validator.check_stop = self.checkpointing.interruption.check_between_steps if size == 1 else lambda: None
        precision, model = trainer.precision_plugin.forward_context(), self.validator.model
        try:
            with self._saved_weights(module), isolate_rng(), eval_mode(model), precision, torch.no_grad():
                sums = self.validator.measure_targets(rank, size)
                dialogues = self.validator.lead_dialogues(rank, size) if self.section.validate_dialogues else []
        except StoppedBetweenSteps:
            # The step's checkpoint is saved first. A resumed run begins with this validation.
            return
        metrics = _compute_metrics(trainer, module, sums, dialogues)
        # The step that a resumed run starts from is a checkpoint.
        self._judge(metrics[f"val/{self.section.best_by}"], module.step, module.step == module.start_step)
        self._report(module, metrics, dialogues)

    def _saved_weights(self, module: SupervisedModule) -> AbstractContextManager[None]:
        """Let the validator's model have the weights that a checkpoint of this step would have."""
        if self._whole is None:
            return module.averaged_weights()
        return self._whole.filled(module.model, module.list_means())

    def _judge(self, value: float, step: int, is_saved: bool) -> None:
        """Compare the validation of a step, which may be saved already, with the best so far. NaN is never better."""
        goodness = value if self.section.best_by == "accuracy" else -value
        self._validated_step = step
        if goodness == goodness and (self.best is None or goodness > self.best):
            self.best, self.best_step, self.since_best = goodness, step, 0
            self.checkpointing.mark_best(step, is_saved)
        else:
            self.since_best += 1
        self._keep_state()

    def _keep_state(self) -> None:
        self.checkpointing.facts[_STATE_KEY] = {
            "best": self.best,
            "best_step": self.best_step,
            "since_best": self.since_best,
            "step": self._validated_step,
        }

    def _report(self, module: SupervisedModule, metrics: dict[str, float], dialogues: Sequence[ScoredDialogue]) -> None:
        for name, value in metrics.items():
            module.log(name, torch.tensor(value, dtype=torch.float32), prog_bar=True, logger=False)
        if module.metric_log is None:
            return
        module.metric_log.log_metrics(metrics, module.step - 1)
        if module.metric_log.takes_pictures:
            pictures = [dialogue.draw() for dialogue in select_drawn(dialogues)]
            module.metric_log.log_pictures("validation", pictures, module.step - 1)


def _compute_metrics(
    trainer: pl.Trainer, module: SupervisedModule, sums: TargetSums, dialogues: Sequence[ScoredDialogue]
) -> dict[str, float]:
    """Return the metrics over all processes."""
    scores = [dialogue.score for dialogue in dialogues]
    calls = [dialogue.session.calls for dialogue in dialogues]
    own = [sums.logprobs, sums.hits, sums.count, float(sum(scores)), float(sum(calls)), float(len(scores))]
    if trainer.world_size > 1:
        held = torch.tensor(own, dtype=torch.float64, device=module.device)
        own = cast(Any, trainer.strategy).reduce(held, reduce_op="sum").tolist()
    logprobs, hits, count, score, called, asked = own
    metrics = {"val/loss": -logprobs / max(1.0, count), "val/token_accuracy": hits / max(1.0, count)}
    if asked:
        metrics |= {"val/accuracy": score / asked, "val/tool_calls": called / asked}
    return metrics
