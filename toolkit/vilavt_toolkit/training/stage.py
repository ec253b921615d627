"""A training stage: its run and settings, and the optimizer step that both stages share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import RLSection, TrainSection
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.metric_log import MetricLog
from vilavt_toolkit.training.parameter_groups import find_rules
from vilavt_toolkit.training.schedule import learning_rate_factor
from vilavt_toolkit.training.sharding import shard_model
from vilavt_toolkit.training.strategies import ReplicatedStrategy
from vilavt_toolkit.training.trainable import build_optimizer, select_trained, trainable_parameters
from vilavt_toolkit.training.world import World

log = logging.getLogger(__name__)

_MAX_NAMED = 8
"""Samples that a message names; a step may have hundreds."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe and its run."""

    recipe: CheckedRecipe
    section: TrainSection | RLSection
    run: Path
    total_steps: int
    """Optimizer steps in all."""
    section_key: str
    """Name of the recipe's section: `train` or `rl`."""
    world: World = field(default_factory=World)
    """The processes that train together."""


class StoppedBetweenSteps(KeyboardInterrupt):
    """Raised when the run was asked to stop while the weights are still those of the last step."""


class StageModule(pl.LightningModule):
    """A stage of `total_steps` optimizer steps; a resumed run has taken `start_step` of them before.

    Optimization is manual, because a step is defined by its tokens, not by a batch: its loss is a mean over all tokens
    of all micro-batches, which Lightning's accumulation of equally weighted batches cannot express.
    """

    section_key: ClassVar[str]
    """Name of the recipe's section."""
    main_metric: ClassVar[str]
    """Name of the logged metric that says how well the stage learns."""
    has_comparable_loss: ClassVar[bool]
    """True if a higher loss is a worse model, whichever step it is of."""

    def __init__(
        self, model: VisualChatModel, optimizer: Optimizer, section: TrainSection | RLSection, total: int, start: int
    ) -> None:
        super().__init__()
        # See the class: a step is not a number of equally weighted batches.
        self.automatic_optimization = False
        self.model = model
        self.section = section
        self.world = World()
        """The processes that train together; `run_stage` sets it."""
        self.total_steps = total
        self.start_step = start
        self.skipped_steps = 0
        """Steps left out because their loss or gradient was NaN or infinite."""
        self.changed_weights = False
        """True if the latest step was taken, and not left out."""
        self.is_between_steps = True
        """True while no weight changes, so that a checkpoint saved after an error is that of the last step."""
        self.metric_log: MetricLog | None = None
        """The trackers that get the metrics; None: nobody does."""
        self._optimizer = optimizer
        self._taken_steps = 0
        self._norm = torch.zeros(())
        self._loss = torch.zeros(())
        self._is_finite = True
        self._metrics: dict[str, Tensor | float] = {}
        select_trained(model, section, self.section_key)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, those before a resumed run was stopped included."""
        return self.start_step + self._taken_steps

    @property
    def taken_loss(self) -> float | None:
        """The loss of the latest step; None if it was left out."""
        return float(self._loss) if self._is_finite else None

    @property
    def weight_names(self) -> dict[int, str]:
        """The names of the trained weights by their `id`."""
        return {id(weight): name for name, weight in trainable_parameters(self.model)}

    def capture_state(self) -> TrainingState:
        """Return what the stage needs to resume exactly, beside weights, optimizer and random state."""
        return TrainingState({}, {"skipped": self.skipped_steps})

    def load_state(self, state: TrainingState) -> None:
        """Take over what `capture_state` gave; raises RunError if it does not fit."""
        self.skipped_steps = int(state.data.get("skipped", 0))

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Let the model have the weights that checkpoints hold, where those are not the newest, and not sharded."""
        return nullcontext()

    def list_means(self) -> Mapping[str, Tensor]:
        """Return the weights that checkpoints hold in place of the newest ones, by name, sharded or not."""
        return {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the recipe's optimizer over the trainable parameters."""
        rules = find_rules(self.model, self.section, self.section_key)
        optimizer = build_optimizer(self._optimizer, trainable_parameters(self.model), self.section_key, rules)
        # Each group's own rate, which `begin_step` scales by the schedule.
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def configure_model(self) -> None:
        """Shard the model over the processes where the strategy says so; Lightning calls this before the first step."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            # Stages without a section `train` of their own have one process.
            is_bf16 = getattr(self.section, "precision", "") == "bf16-mixed"
            assert self.device_mesh is not None
            shard_model(self.model, self.device_mesh["data_parallel"], is_bf16)

    # --- The step --------------------------------------------------------------------------------------------------

    def begin_step(self) -> Any:
        """Return the optimizer with empty gradients and the learning rate of this step."""
        self.is_between_steps = False
        optimizer = cast(Any, self.optimizers())
        factor = learning_rate_factor(self.section, self.step, self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.zero_grad()
        return optimizer

    def add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of a part of the step's loss; there is none if the part uses nothing that learns.

        A text without an image uses no encoder, which may be the only part that learns.
        """
        if loss.requires_grad:
            self.manual_backward(loss)

    def end_step(self, optimizer: Any, loss: Tensor, find_faulty: Callable[[], Sequence[str]]) -> None:
        """Take the optimizer's step, or leave it out if loss or gradient is NaN or infinite.

        `loss` is that of the whole step, over all processes. `find_faulty` names this process's samples whose own loss
        is not finite, or all of the step; it is called only then. Raises TrainingError if more steps were left out than
        the recipe allows.
        """
        step, self._loss = self.step, loss
        # Before a loss scaler looks for infinite gradients: every process must find the same.
        if isinstance(self.trainer.strategy, ReplicatedStrategy):
            self.trainer.strategy.sum_gradients([weight for _, weight in trainable_parameters(self.model)])
        # Either way `on_before_optimizer_step` decides whether the step changes anything. A loss scaler refuses to step
        # without any gradient.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 0.0
        if any(weight.grad is not None for _, weight in trainable_parameters(self.model)):
            optimizer.step()
        else:
            self.on_before_optimizer_step(optimizer)
        self._taken_steps += 1
        # A loss scaler lowers its scale when it has left a step out.
        self.changed_weights = self._is_finite and (scaler is None or scaler.get_scale() >= scale)
        if self._is_finite:
            return
        self.skipped_steps += 1
        names = list(dict.fromkeys(name for found in self.world.gather(list(find_faulty())) for name in found))
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        reason = f"loss or gradient is NaN or infinite, with samples {', '.join(names[:_MAX_NAMED])}{more}"
        log.warning("step %d is left out: its %s.", step, reason)
        if self.skipped_steps > self.section.max_skipped:
            key = self.section_key
            raise TrainingError(
                f"{self.skipped_steps} steps had to be left out, the last being step {step}: its {reason}. Look at "
                f"those samples, lower {key}.optimizer.lr or {key}.gradient_clip, or raise {key}.max_skipped."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, or drop it if it is not finite.

        Lightning calls this inside `optimizer.step()`, after mixed precision has divided the gradient by its loss
        scale, so that the norm is the true one.
        """
        limit = self.section.gradient_clip
        weights = [weight for _, weight in trainable_parameters(self.model)]
        self._norm = nn.utils.clip_grad_norm_(weights, float("inf") if limit is None else limit)
        # Of sharded gradients this is the norm over all processes, which each of them gets here.
        if isinstance(self._norm, DTensor):
            self._norm = self._norm.full_tensor()
        # A loss scaler finds its scale by letting gradients overflow, and leaves such steps out itself.
        has_scaler = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        checked = self._loss if has_scaler else self._loss + self._norm.to(self._loss.device)
        # `bool` waits for the device: once a step, when everything has been computed.
        self._is_finite = bool(torch.isfinite(checked))
        if not self._is_finite:
            # Every optimizer skips weights without a gradient, and leaves their moments as they are.
            for weight in weights:
                weight.grad = None

    # --- Metrics ---------------------------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, Tensor | float], in_bar: Collection[str] = ()) -> None:
        """Set metrics of the current step; those named in `in_bar` are shown in the progress bar."""
        self._metrics.update(metrics)
        for name in in_bar:
            if name in metrics:
                # In float32, since Lightning would make a number a tensor of the default type, which may be bf16.
                value = torch.as_tensor(metrics[name], dtype=torch.float32)
                self.log(name, value, prog_bar=True, logger=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step, and write its metrics to the trackers every `log_every` steps.

        Lightning would count steps from 0 again in a resumed run, and only a private counter changes that. Metrics that
        a step does not set keep the values of an earlier one: rollouts are made before the first inner epoch only.
        """
        self.is_between_steps = True
        step = self.step - 1
        if self.metric_log is not None and not (step + 1) % self.section.log_every:
            self.metric_log.log_metrics({name: float(value) for name, value in self._metrics.items()}, step)
