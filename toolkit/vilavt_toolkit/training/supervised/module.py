"""Supervised training on traces: the loss is on the model's own tokens only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import Optimizer, StoppingPolicy
from vilavt_toolkit.generation.hidden_states import collect_hidden_states
from vilavt_toolkit.models.batch import Batch, make_empty_batch
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.training.supervised.bad_samples import BadSampleCount
from vilavt_toolkit.training.supervised.copy_ahead import copy_ahead
from vilavt_toolkit.training.supervised.data import StepBatch
from vilavt_toolkit.training.supervised.datasets import StepDatasets
from vilavt_toolkit.training.trainable import trainable_parameters
from vilavt_toolkit.training.weight_average import WeightAverage, load_newest_weights
from vilavt_toolkit.training.world import agreeing

StepSampleIds = Callable[[int], Sequence[str]]
"""Returns the ids of a step's samples, in the order they were drawn."""


class SupervisedModule(StageModule):
    """Takes one optimizer step per batch; any split into micro-batches gives the same gradient."""

    section_key, main_metric, has_comparable_loss = "train", "loss", True
    section: TrainSection

    def __init__(
        self,
        model: VisualChatModel,
        optimizer: Optimizer,
        section: TrainSection,
        start: int = 0,
        list_sample_ids: StepSampleIds | None = None,
        datasets: StepDatasets | None = None,
    ) -> None:
        # Pretrained parts come in evaluation mode and new ones do not. Freezing puts what is frozen back into it.
        model.train()
        super().__init__(model, optimizer, section, section.steps, start)
        self._list_sample_ids = list_sample_ids
        self._datasets = datasets
        self._bad_samples = BadSampleCount(section.max_bad_samples)
        self._average: WeightAverage | None = None
        self._learning_policies = [policy for policy in model.stopping if trainable_parameters(policy)]

    def capture_state(self) -> TrainingState:
        """Return the samples that were left out and the newest weights behind a mean, beside what every stage needs."""
        base = super().capture_state()
        newest = self._average.capture_state() if self._average is not None else {}
        return TrainingState({**base.tensors, **newest}, {**base.data, "bad_samples": self._bad_samples.to_json()})

    def load_state(self, state: TrainingState) -> None:
        """Take over what `capture_state` gave; raises RunError if it is damaged."""
        super().load_state(state)
        self._bad_samples.load_json(state.data.get("bad_samples", ()))
        if self._average is not None:
            self._average.load_state(state)
        # Also where the recipe has no mean any more: training goes on from the newest weights.
        load_newest_weights(dict(trainable_parameters(self.model)), state)

    def on_train_start(self) -> None:
        """Begin the mean of the weights, which are on their device by now, and the same in all processes.

        In a resumed run they are the mean of the checkpoint, until `load_state` puts the newest in their place.
        """
        if self.section.ema is not None:
            self._average = WeightAverage(trainable_parameters(self.model), self.section.ema)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Let the model have the mean of its weights for a while, if the recipe has one."""
        return nullcontext() if self._average is None else self._average.in_use()

    def list_means(self) -> Mapping[str, Tensor]:
        """Return the means of the trained weights by name, if the recipe has them."""
        return {} if self._average is None else self._average.means

    def end_step(self, optimizer: Any, loss: Tensor, find_faulty: Callable[[], Sequence[str]]) -> None:
        """Take the optimizer's step or leave it out, and take the new weights into their mean."""
        super().end_step(optimizer, loss, find_faulty)
        if self._average is not None and self.changed_weights:
            self._average.update()

    def training_step(self, batch: StepBatch, index: int) -> None:
        """Take one optimizer step on the mean loss over all produced tokens of the step.

        If stopping policies learn, the mean of their loss over the step's turns is added. Raises TrainingError, before
        anything changes, for more samples that cannot be read than `train.max_bad_samples`.
        """
        # Over all processes, of which this one may have no sample at all.
        produced_tokens, turns, bad = self.world.sum_counts(batch.produced_tokens, batch.turns, len(batch.bad_samples))
        if bad:
            with agreeing():
                self._bad_samples.add_samples(sum(self.world.gather(batch.bad_samples), ()))
        # Agreed on before any of them: in its backward pass a process waits for the others.
        (most,) = self.world.find_largest(len(batch.micro_batches))
        step, optimizer = self.step, self.begin_step()
        # In float32: bf16, the default type under bf16-true, counts exactly to 256 only.
        loss, hits, stopping_loss = torch.zeros(3, device=self.device, dtype=torch.float32)
        step_logprobs: list[Tensor] = []
        for micro_batch in copy_ahead(batch.micro_batches, self.device):
            states, policy_loss = self._run_model(micro_batch)
            logprobs, is_hit = target_logprobs_and_hits(self.model.language_model, states, micro_batch)
            policy_loss = policy_loss / max(1, turns)
            # Divided by the step's counts, not the micro-batch's, so that the parts add up to the step's mean.
            part = policy_loss - logprobs.sum() / max(1, produced_tokens)
            self.add_gradient(part)
            # Sums stay on the device: reading one here would wait for it.
            loss, hits = loss + part.detach(), hits + is_hit.sum()
            stopping_loss = stopping_loss + policy_loss.detach()
            step_logprobs.append(logprobs.detach())
        if self.model.encodes_always:
            self._take_part(most - len(batch.micro_batches))
        loss, hits, stopping_loss = self.world.sum_tensor(torch.stack([loss, hits, stopping_loss]))
        self.end_step(optimizer, loss, lambda: self._find_faulty(step, batch, step_logprobs))
        metrics = {"loss": loss, "token_accuracy": hits / max(1, produced_tokens)}
        if self._learning_policies:
            metrics["stopping_loss"] = stopping_loss
        self.log_metrics(metrics, in_bar=metrics)
        if self._datasets is not None:
            self.log_metrics(self._datasets.measure_losses(self.world, self.device, step, batch, step_logprobs))
        self.log_metrics(
            {
                "gradient_norm": self._norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "tokens": float(produced_tokens),
                "skipped": float(self.skipped_steps),
                "bad_samples": float(len(self._bad_samples)),
            }
        )

    def _take_part(self, times: int) -> None:
        """Run on nothing some times, so that this process gathers sharded weights as often as one with more to do."""
        for _ in range(times):
            empty = make_empty_batch(self.model.language_model).to(self.device)
            states, policy_loss = self._run_model(empty)
            logprobs, _ = target_logprobs_and_hits(self.model.language_model, states, empty)
            self.add_gradient(0 * (policy_loss + logprobs.sum()))

    def _run_model(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the states [B, L, D] of all columns, and the learning stopping policies' loss, summed over turns."""
        policy_loss = torch.zeros((), device=self.device, dtype=torch.float32)
        if not self._learning_policies:
            return self.model.run_layers(batch), policy_loss
        with collect_hidden_states(self.model.language_model) as seen:
            states = self.model.run_layers(batch)
        # States are hidden states, except those of a language model that has only `forward`, and has called its head.
        hidden = seen[-1] if seen else states
        # Detached: the policies read the model, and what the model learns must not depend on which policies read it.
        turn_starts = hidden.detach().flatten(0, 1).index_select(0, batch.starts)
        for policy in self._learning_policies:
            found = cast(StoppingPolicy, policy).loss(turn_starts, batch.answered)
            if found is not None:
                policy_loss = policy_loss + found
        return states, policy_loss

    def _find_faulty(self, step: int, batch: StepBatch, step_logprobs: Sequence[Tensor]) -> list[str]:
        """Name the samples with a log-probability that is NaN or infinite, or all of the step if none has one."""
        ids = list(self._list_sample_ids(step)) if self._list_sample_ids is not None else []
        found, first_row = [], 0
        for micro_batch, logprobs in zip(batch.micro_batches, step_logprobs, strict=True):
            rows = micro_batch.find_trajectories(micro_batch.targets[~logprobs.isfinite()])
            found += [batch.order[first_row + row] for row in rows]
            first_row += micro_batch.size
        places = found or range(first_row)
        return [ids[place] if ids else f"number {place}" for place in places]
