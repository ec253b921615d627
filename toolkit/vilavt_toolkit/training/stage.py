"""What both stages of training are: optimizer steps whose rate, clipping and faults are handled alike."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.schema import StageSection
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.schedule import rate_factor
from vilavt_toolkit.training.trainable import build_optimizer, freeze, trained

log = logging.getLogger(__name__)

_MOST_NAMED = 8


class StoppedBetweenSteps(KeyboardInterrupt):
    """The run was asked to stop while the weights were still those that the last step left."""


class StageModule(pl.LightningModule):
    """A stage of `total` optimizer steps, of which `start` were taken before this fit."""

    key: ClassVar[str]
    """The recipe's section."""

    def __init__(
        self, model: VisualChatModel, optimizer: Optimizer, section: StageSection, total: int, start: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.section = section
        self.total = total
        self.start = start
        self.skipped = 0
        """Steps left out because their loss or gradient was no finite number."""
        self.between_steps = False
        """Whether what is done now changes no weight, so that an error loses nothing."""
        self._optimizer = optimizer
        self._norm = torch.zeros(())
        self._loss = torch.zeros(())
        self._sound = True
        freeze(model, section.frozen, self.key)

    @property
    @abstractmethod
    def step(self) -> int:
        """Optimizer steps taken so far, over all fits."""

    def state(self) -> TrainingState:
        """What the stage needs to go on exactly, beside weights, optimizer and random numbers."""
        return TrainingState({}, {"skipped": self.skipped})

    def load_state(self, state: TrainingState) -> None:
        """Take back what `state` gave; raises RunError where it does not fit."""
        self.skipped = int(state.data.get("skipped", 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimizer over what is trained."""
        optimizer = build_optimizer(self._optimizer, trained(self.model), self.key)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def begin_step(self) -> Any:
        """The optimizer, its gradients empty and its rate that of the step."""
        optimizer = cast(Any, self.optimizers())
        factor = rate_factor(self.section, self.step, self.total)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.zero_grad()
        return optimizer

    def end_step(self, optimizer: Any, loss: Tensor, culprits: Callable[[], Sequence[str]]) -> None:
        """Step, unless loss or gradient is no finite number; then say so, and raise TrainingError past the limit.

        `culprits` names the samples whose own loss is none, or all of the step; it is called in that case only.
        """
        step, self._loss = self.step, loss
        optimizer.step()
        if self._sound:
            return
        self.skipped += 1
        named = list(culprits())
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        what = f"loss or gradient is no finite number, with samples {', '.join(named[:_MOST_NAMED])}{more}"
        log.warning("step %d is left out: its %s.", step, what)
        if self.skipped > self.section.max_skipped:
            raise TrainingError(
                f"{self.skipped} steps had to be left out, the last being step {step}: its {what}; lower the learning "
                f"rate or the gradient_clip, look at those samples, or raise {self.key}.max_skipped."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, or drop it where it is none; here mixed precision has taken its loss scale out."""
        limit = self.section.gradient_clip
        weights = [weight for _, weight in trained(self.model)]
        self._norm = nn.utils.clip_grad_norm_(weights, float("inf") if limit is None else limit)
        # A loss scaler takes care of gradients that overflow; they are its way of finding the scale.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        found = self._loss if scaled else self._loss + self._norm.to(self._loss.device)
        # The one wait for the device in a step, when all of it has been computed.
        self._sound = bool(torch.isfinite(found))
        if not self._sound:
            for weight in weights:
                weight.grad = None  # which every optimizer passes by, its moments unchanged
