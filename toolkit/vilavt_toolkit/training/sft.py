"""Supervised training on traces: the loss is on the model's own tokens only."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.schema import TrainSection
from vilavt_toolkit.training.data import StepBatch
from vilavt_toolkit.training.learned import build_optimizer, freeze, trained
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.schedule import rate_factor


class SupervisedModule(pl.LightningModule):
    """One optimizer step per batch; any split into micro-batches gives the same gradient."""

    def __init__(self, model: VisualChatModel, optimizer: Optimizer, section: TrainSection, start: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.section = section
        self.start = start
        """Steps taken before this fit."""
        self._optimizer = optimizer
        self._norm = torch.zeros(())
        # Pretrained parts come in evaluation mode, and resumed ones do not.
        model.train()
        freeze(model, section.freeze)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, over all fits."""
        return self.start + self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimizer over what is trained."""
        optimizer = build_optimizer(self._optimizer, trained(self.model))
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def training_step(self, batch: StepBatch, index: int) -> None:
        """Take one optimizer step; the loss is the mean over all produced tokens of the step."""
        optimizer = cast(Any, self.optimizers())
        self._set_rate(optimizer)
        optimizer.zero_grad()
        # bf16 counts to 256 only, and is the default number format under bf16-true.
        loss, hits = torch.zeros(2, device=self.device, dtype=torch.float32)
        for micro in batch.micro:
            logits = self.model(micro)
            logprobs, right = target_logprobs_and_hits(logits, micro)
            part = -logprobs.sum() / batch.produced
            self.manual_backward(part)
            loss, hits = loss + part.detach(), hits + right.sum()
        optimizer.step()
        numbers = [optimizer.param_groups[0]["lr"], float(batch.produced)]
        rate, tokens = torch.tensor(numbers, dtype=torch.float32)
        shown = {"loss": loss, "token_accuracy": hits / batch.produced}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({"gradient_norm": self._norm, "learning_rate": rate, "tokens": tokens})

    def _set_rate(self, optimizer: Any) -> None:
        factor = rate_factor(self.section, self.step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient; here mixed precision has taken its loss scale out."""
        limit = self.section.gradient_clip
        weights = [weight for _, weight in trained(self.model)]
        self._norm = nn.utils.clip_grad_norm_(weights, float("inf") if limit is None else limit)
