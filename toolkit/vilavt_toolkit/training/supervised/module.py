"""Supervised training on traces: the loss is on the model's own tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import Optimizer, StoppingPolicy
from vilavt_toolkit.generation.hidden_states import hidden_states
from vilavt_toolkit.models.batch import Batch
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.training.supervised.data import StepBatch
from vilavt_toolkit.training.trainable import trained

Names = Callable[[int], Sequence[str]]
"""The ids of the samples of a step, in the order they were drawn."""


class SupervisedModule(StageModule):
    """One optimizer step per batch; any split into micro-batches gives the same gradient."""

    key = "train"

    def __init__(
        self,
        model: VisualChatModel,
        optimizer: Optimizer,
        section: TrainSection,
        start: int = 0,
        names: Names | None = None,
    ) -> None:
        # Pretrained parts come in evaluation mode, and resumed ones do not; what is frozen goes back to it.
        model.train()
        super().__init__(model, optimizer, section, section.steps, start)
        self._names = names
        self._stopping = [policy for policy in model.stopping if trained(policy)]

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, over all fits."""
        return self.start + self.global_step

    def training_step(self, batch: StepBatch, index: int) -> None:
        """Take one optimizer step; the loss is the mean over all produced tokens of the step.

        Where stopping policies learn, the mean of their loss over the step's turns is added.
        """
        step, optimizer = self.step, self.begin_step()
        # bf16 counts to 256 only, and is the default number format under bf16-true.
        loss, hits, stopping = torch.zeros(3, device=self.device, dtype=torch.float32)
        seen: list[Tensor] = []
        for micro in batch.micro:
            logits, lost = self._forward(micro)
            logprobs, right = target_logprobs_and_hits(logits, micro)
            lost = lost / max(1, batch.turns)
            part = lost - logprobs.sum() / batch.produced
            self.manual_backward(part)
            loss, hits, stopping = loss + part.detach(), hits + right.sum(), stopping + lost.detach()
            seen.append(logprobs.detach())
        self.end_step(optimizer, loss, lambda: self._culprits(step, batch, seen))
        numbers = [optimizer.param_groups[0]["lr"], float(batch.produced), float(self.skipped)]
        rate, tokens, skipped = torch.tensor(numbers, dtype=torch.float32)
        shown = {"loss": loss, "token_accuracy": hits / batch.produced}
        self.log_dict(shown | ({"stopping_loss": stopping} if self._stopping else {}), prog_bar=True)
        self.log_dict({"gradient_norm": self._norm, "learning_rate": rate, "tokens": tokens, "skipped": skipped})

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V], and the loss of the stopping policies that learn, summed over the batch's turns."""
        lost = torch.zeros((), device=self.device, dtype=torch.float32)
        if not self._stopping:
            return self.model(batch), lost
        with hidden_states(self.model.language_model) as seen:
            logits = self.model(batch)
        # The policies read the model and do not change it: what it learns does not depend on them.
        begun = seen[-1].detach().flatten(0, 1).index_select(0, batch.starts)
        losses = [cast(StoppingPolicy, policy).loss(begun, batch.answered) for policy in self._stopping]
        return logits, sum((loss for loss in losses if loss is not None), lost)

    def _culprits(self, step: int, batch: StepBatch, seen: Sequence[Tensor]) -> list[str]:
        """The samples with a log-probability that is no finite number; all of the step where there is none."""
        names = list(self._names(step)) if self._names is not None else []
        found, first = [], 0
        for micro, logprobs in zip(batch.micro, seen, strict=True):
            rows = micro.targets[~logprobs.isfinite()] // micro.ids.shape[1]
            found += [batch.order[first + row] for row in sorted(set(rows.tolist()))]
            first += len(micro.ids)
        places = found or range(first)
        return [names[place] if names else f"number {place}" for place in places]
