"""Supervised training on traces: the loss is on the model's own tokens only."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.schema import TrainSection
from vilavt_toolkit.training.data import StepBatch
from vilavt_toolkit.training.losses import target_hits, target_logprobs
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
        if not any(weight.requires_grad for weight in model.parameters()):
            raise UsageError("train.freeze leaves nothing to train; take a part out of it.")

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, over all fits."""
        return self.start + self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimizer over what is trained."""
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        optimizer = self._optimizer.build(named)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def training_step(self, batch: StepBatch, index: int) -> None:
        """Take one optimizer step; the loss is the mean over all produced tokens of the step."""
        optimizer = cast(Any, self.optimizers())
        self._set_rate(optimizer)
        optimizer.zero_grad()
        loss, hits = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for micro in batch.micro:
            logits = self.model(micro)
            part = -target_logprobs(logits, micro).sum() / batch.produced
            self.manual_backward(part)
            loss, hits = loss + part.detach(), hits + target_hits(logits, micro).sum()
        optimizer.step()
        rate = optimizer.param_groups[0]["lr"]
        shown = {"loss": loss, "token_accuracy": hits / batch.produced}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({"gradient_norm": self._norm, "learning_rate": rate, "tokens": float(batch.produced)})

    def _set_rate(self, optimizer: Any) -> None:
        factor = rate_factor(self.section, self.step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient; here mixed precision has taken its loss scale out."""
        limit = self.section.gradient_clip
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._norm = nn.utils.clip_grad_norm_(trained, float("inf") if limit is None else limit)


def freeze(model: VisualChatModel, parts: list[Any]) -> None:
    """Exclude parts of the model from training; their dropout is off and their running statistics stay."""
    modules: dict[str, nn.Module | None] = {
        "encoder": model.encoder.encoder,
        "modulator": model.encoder.modulators,
        "inquiry_encoder": model.encoder.inquiry_encoder,
        "projector": model.projector,
        "language_model": model.language_model,
    }
    for part in parts:
        module = modules[part]
        if module is not None:
            module.requires_grad_(False).eval()
