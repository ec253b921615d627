"""Training data: samples turned into trajectories, before training or in workers, never in the training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import LanguageModel, Task, Trajectory, View
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.supervised.workers import BeginSample, WorkerPool, require_fork
from vilavt_toolkit.utils.progress import track_progress

PreparedSample = tuple[Trajectory, list[View]]
"""A sample as the model is trained on it: ids and regions, and each region's crop, ready for the encoder."""
_CHUNK = 64
"""Samples that a worker prepares before it sends them back."""


class TraceDataset:
    """A task's training samples as trajectories and views, prepared on access."""

    def __init__(self, model: VisualChatModel, task: Task, size: int) -> None:
        self.model, self.task, self.size = model, task, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> PreparedSample:
        session = build_trace_session(self.model, self.task.sample("train", index))
        return session.trajectory, session.views


class PreparedDataset:
    """All samples prepared once, in `workers` processes, before the first step; `seconds` is their time-out."""

    def __init__(self, dataset: TraceDataset, workers: int, seconds: float) -> None:
        def prepare_chunk(chunk: range, begin_sample: BeginSample) -> list[PreparedSample]:
            return list(_prepare_samples(dataset, chunk, begin_sample))

        chunks = [range(start, min(start + _CHUNK, len(dataset))) for start in range(0, len(dataset), _CHUNK)]
        self._rows: list[PreparedSample] = []
        with WorkerPool(prepare_chunk, workers, seconds) as pool:
            for rows in track_progress(pool.map(chunks), len(chunks), "preparing samples"):
                self._rows += rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PreparedSample:
        return self._rows[index]


def _prepare_samples(
    dataset: TraceDataset | PreparedDataset, indices: Sequence[int], begin_sample: BeginSample
) -> Iterator[PreparedSample]:
    for index in indices:
        begin_sample(index)
        yield dataset[index]


class StepSampler:
    """The indices of every step's samples: shuffled epochs, laid end to end and cut into steps.

    They are a function of seed and step alone, so that a resumed run sees the same samples without saved state.
    """

    def __init__(self, size: int, batch_size: int, steps: int, seed: int, start: int = 0) -> None:
        self.size, self.batch_size, self.steps, self.seed, self.start = size, batch_size, steps, seed, start
        self._latest_order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.step_indices, range(self.start, self.steps))

    def step_indices(self, step: int) -> list[int]:
        """Return the indices of one step's samples, which may be of two epochs or more."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._epoch_order(place // self.size)[place % self.size]) for place in places]

    def _epoch_order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        # Steps are asked for in order, so that one epoch's permutation is enough to keep.
        if epoch != self._latest_order[0]:
            self._latest_order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._latest_order[1]


class StepBatch:
    """The micro-batches of one optimizer step, and counts over all of them."""

    # Not a dataclass: Lightning replaces the fields of dataclasses to convert them to the training precision.
    def __init__(self, micro_batches: Sequence[Batch], order: Sequence[int] = ()) -> None:
        self.micro_batches = tuple(micro_batches)
        self.order = tuple(order)
        """For each row, counted through the micro-batches, its sample's place in the step."""
        self.produced_tokens = sum(len(batch.targets) for batch in self.micro_batches)
        """Number of tokens that the model produces, which the loss is a mean over."""
        self.turns = sum(len(batch.starts) for batch in self.micro_batches)
        """Number of the model's turns that answer or call the tool."""

    def to(self, device: torch.device | str) -> StepBatch:
        """Return the batch with its tensors on `device`."""
        return StepBatch([batch.to(device) for batch in self.micro_batches], self.order)


@dataclass(frozen=True)
class StepCollator:
    """Collates the samples of one step into micro-batches."""

    micro_batch: int
    language_model: LanguageModel

    def __call__(self, prepared: Sequence[PreparedSample]) -> StepBatch:
        """Return the batch of a step."""
        # Sorted by length, so that rows of one micro-batch need little padding. No gradient depends on the split.
        order = sorted(range(len(prepared)), key=lambda place: len(prepared[place][0].ids))
        prepared = [prepared[place] for place in order]
        micro_batches = []
        for start in range(0, len(prepared), self.micro_batch):
            part = prepared[start : start + self.micro_batch]
            trajectories, views = [row for row, _ in part], [views for _, views in part]
            micro_batches.append(collate(trajectories, views, self.language_model))
        return StepBatch(micro_batches, order)


class StepLoader:
    """The batches of all steps that are left, prepared by workers or while one is asked for.

    Its workers are ended by `close`, or behind the last batch.
    """

    def __init__(
        self,
        dataset: TraceDataset | PreparedDataset,
        sampler: StepSampler,
        collator: StepCollator,
        workers: int,
        seconds: float,
    ) -> None:
        self.check_stop: Callable[[], None] = lambda: None
        """Called while a batch is waited for; raises an error if the run is to end now."""
        self._sampler = sampler

        def prepare_step(step: int, begin_sample: BeginSample) -> StepBatch:
            return collator(list(_prepare_samples(dataset, sampler.step_indices(step), begin_sample)))

        self._pool = WorkerPool(prepare_step, workers, seconds, lambda: self.check_stop())

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[StepBatch]:
        with self._pool:
            yield from self._pool.map(range(self._sampler.start, self._sampler.steps))

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def build_step_sampler(task: Task, section: TrainSection, seed: int, start: int = 0) -> StepSampler:
    """Build the sampler of a task's training samples, of which `max_samples` are used at most."""
    available = task.length("train")
    size = min(section.max_samples or available, available)
    return StepSampler(size, section.batch_size, section.steps, seed, start)


def build_step_loader(
    model: VisualChatModel, task: Task, section: TrainSection, seed: int, start: int = 0
) -> StepLoader:
    """Build the loader of all batches from step `start` on; preparing samples ahead happens here."""
    sampler = build_step_sampler(task, section, seed, start)
    traces = TraceDataset(model, task, sampler.size)
    if section.workers:
        require_fork()
    is_ahead = section.preprocess == "ahead"
    dataset = PreparedDataset(traces, section.workers, section.worker_seconds) if is_ahead else traces
    # Prepared samples only need collating, which is too little to be worth a worker.
    workers = 0 if is_ahead else section.workers
    collator = StepCollator(section.micro_batch or section.batch_size, model.language_model)
    return StepLoader(dataset, sampler, collator, workers, section.worker_seconds)
