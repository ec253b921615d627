"""Training data: samples turned into trajectories, before training or in workers, never in the training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import LanguageModel, Task
from vilavt_toolkit.data.row_budget import RowBudget, build_row_budget, build_sample_budget
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.supervised.bad_samples import BadSample
from vilavt_toolkit.training.supervised.cached_samples import load_samples, store_samples
from vilavt_toolkit.training.supervised.packing import fill_rows
from vilavt_toolkit.training.supervised.sample_cache import PreparedSample, SampleCache
from vilavt_toolkit.training.supervised.workers import BeginSample, WorkerPool, require_fork
from vilavt_toolkit.training.world import World
from vilavt_toolkit.utils.progress import track_progress

_CHUNK = 64
"""Samples that a worker prepares before it sends them back."""


class TraceDataset:
    """A task's samples as trajectories and views, as they are learned from; prepared on access.

    With the `budget` of a row, samples that are larger are what its settings make of them.
    """

    def __init__(
        self, model: VisualChatModel, task: Task, size: int, budget: RowBudget | None = None, split: str = "train"
    ) -> None:
        self.model, self.task, self.size, self.budget, self.split = model, task, size, budget, split

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> PreparedSample:
        is_learned = self.split == "train"
        sample = self.task.sample("train", index) if is_learned else self.task.training_sample(self.split, index)
        # A sample that will be cut is written whole first, however long it is.
        session = build_trace_session(self.model, sample, self.budget is None or self.budget.context is None)
        if self.budget is None:
            return session.trajectory, session.views
        try:
            return self.budget.fit(session.trajectory, session.views)
        except InputError as error:
            raise InputError(f"sample {sample.id}: {error}") from None


class PreparedDataset:
    """Samples prepared once, in `workers` processes, before the first step; `seconds` is their time-out.

    `indices` are those of the samples that the run will use, each once. Those in `cache` are taken from there, and the
    others are put into it.
    """

    def __init__(
        self,
        dataset: TraceDataset,
        indices: Sequence[int],
        workers: int,
        seconds: float,
        skips_bad: bool = False,
        cache: SampleCache | None = None,
    ) -> None:
        def prepare_chunk(chunk: Sequence[int], begin_sample: BeginSample) -> list[PreparedSample | BadSample]:
            rows = list(prepare_samples(dataset, chunk, begin_sample, skips_bad))
            if cache is not None:
                # A sample that cannot be read may be mended before the next run, so that it is not kept.
                good = {index: row for index, row in zip(chunk, rows, strict=True) if not isinstance(row, BadSample)}
                store_samples(dataset, good, cache)
            return rows

        self._rows: dict[int, PreparedSample | BadSample] = {}
        if cache is not None:
            self._rows.update(load_samples(dataset, indices, cache))
        left = [index for index in indices if index not in self._rows]
        chunks = [left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK)]
        if not chunks:
            return
        with WorkerPool(prepare_chunk, workers, seconds) as pool:
            prepared = track_progress(pool.map(chunks), len(chunks), "preparing samples")
            for chunk, rows in zip(chunks, prepared, strict=True):
                self._rows.update(zip(chunk, rows, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PreparedSample | BadSample:
        return self._rows[index]


def prepare_samples(
    dataset: TraceDataset | PreparedDataset, indices: Sequence[int], begin_sample: BeginSample, skips_bad: bool
) -> Iterator[PreparedSample | BadSample]:
    """Yield every sample; with `skips_bad`, the error of one that cannot be read in its place."""
    for index in indices:
        begin_sample(index)
        try:
            yield dataset[index]
        except InputError as error:
            if not skips_bad:
                raise
            yield BadSample(index, str(error))


class StepSampler:
    """The indices of every step's samples: shuffled epochs, laid end to end and cut into steps.

    They are a function of seed and step alone, so that a resumed run sees the same samples without saved state. Each
    process of `world` gets its share of every step, so that together they take the steps of one process.
    """

    def __init__(
        self, size: int, batch_size: int, steps: int, seed: int, start: int = 0, world: World | None = None
    ) -> None:
        self.size, self.batch_size, self.steps, self.seed, self.start = size, batch_size, steps, seed, start
        self.world = world or World()
        self._latest_order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.step_indices, range(self.start, self.steps))

    def used_indices(self) -> list[int]:
        """Return the indices of all samples that the steps left use, each once, in the order in which they come."""
        used: dict[int, None] = {}
        for indices in self:
            used.update(dict.fromkeys(indices))
            # Later epochs bring nothing new.
            if len(used) == self.size:
                break
        return list(used)

    def step_indices(self, step: int) -> list[int]:
        """Return the indices of this process's samples of one step, which may be of two epochs or more."""
        places = self.world.deal(range(step * self.batch_size, (step + 1) * self.batch_size))
        return [int(self._epoch_order(place // self.size)[place % self.size]) for place in places]

    def _epoch_order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        # Steps are asked for in order, so that one epoch's permutation is enough to keep.
        if epoch != self._latest_order[0]:
            self._latest_order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._latest_order[1]


class StepBatch:
    """The micro-batches of one optimizer step, and counts over all of them."""

    # Not a dataclass: Lightning replaces the fields of dataclasses to convert them to the training precision.
    def __init__(
        self, micro_batches: Sequence[Batch], order: Sequence[int] = (), bad_samples: Sequence[BadSample] = ()
    ) -> None:
        self.micro_batches = tuple(micro_batches)
        self.order = tuple(order)
        """For each row, counted through the micro-batches, its sample's place in the step."""
        self.bad_samples = tuple(bad_samples)
        """The step's samples that are left out."""
        self.produced_tokens = sum(len(batch.targets) for batch in self.micro_batches)
        """Number of tokens that the model produces, which the loss is a mean over."""
        self.wait_seconds = 0.0
        """Time for which training waited until the batch was ready."""
        self.turns = sum(len(batch.starts) for batch in self.micro_batches)
        """Number of the model's turns that answer or call the tool."""

    def to(self, device: torch.device | str) -> StepBatch:
        """Return the batch with its tensors on `device`."""
        moved = StepBatch([batch.to(device) for batch in self.micro_batches], self.order, self.bad_samples)
        moved.wait_seconds = self.wait_seconds
        return moved


@dataclass(frozen=True)
class StepCollator:
    """Collates the samples of one step into micro-batches: padded rows, or with `budget` one row without padding."""

    micro_batch: int
    language_model: LanguageModel
    budget: RowBudget | None = None

    def __call__(self, prepared: Sequence[PreparedSample]) -> StepBatch:
        """Return the batch of a step. Any part of the step's samples may be given, such as those of one process."""
        micro_batches, order = list[Batch](), list[int]()
        for places in self._split(prepared):
            trajectories, views = [prepared[place][0] for place in places], [prepared[place][1] for place in places]
            packed = self.budget is not None
            micro_batches.append(collate(trajectories, views, self.language_model, packed=packed))
            order += places
        return StepBatch(micro_batches, order)

    def _split(self, prepared: Sequence[PreparedSample]) -> list[list[int]]:
        """Return the places of every micro-batch's samples. No gradient depends on the split."""
        if self.budget is not None:
            return fill_rows([self.budget.measure(*sample) for sample in prepared], self.budget)
        # Sorted by length, so that rows of one micro-batch need little padding.
        order = sorted(range(len(prepared)), key=lambda place: len(prepared[place][0].ids))
        return [order[start : start + self.micro_batch] for start in range(0, len(order), self.micro_batch)]


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
        skips_bad: bool = False,
        pins: bool = False,
    ) -> None:
        self.check_stop: Callable[[], None] = lambda: None
        """Called while a batch is waited for; raises an error if the run is to end now."""
        self._sampler = sampler

        def prepare_step(step: int, begin_sample: BeginSample) -> StepBatch:
            prepared = list(prepare_samples(dataset, sampler.step_indices(step), begin_sample, skips_bad))
            return _collate_readable(prepared, collator)

        # Every step ends in a wait for the device, so that a batch outlives the copies out of it.
        self._pool = WorkerPool(prepare_step, workers, seconds, lambda: self.check_stop(), pins)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[StepBatch]:
        with self._pool:
            asked = time.perf_counter()
            for batch in self._pool.map(range(self._sampler.start, self._sampler.steps)):
                batch.wait_seconds = time.perf_counter() - asked
                yield batch
                asked = time.perf_counter()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def _collate_readable(prepared: Sequence[PreparedSample | BadSample], collator: StepCollator) -> StepBatch:
    """Collate a step's samples without the bad ones, which the batch lists beside them."""
    bad = [sample for sample in prepared if isinstance(sample, BadSample)]
    places = [place for place, sample in enumerate(prepared) if not isinstance(sample, BadSample)]
    batch = collator([sample for sample in prepared if not isinstance(sample, BadSample)])
    # The collator counts the samples that it got, and errors name samples by their place in the whole step.
    return StepBatch(batch.micro_batches, [places[place] for place in batch.order], bad) if bad else batch


def build_step_sampler(
    task: Task, section: TrainSection, seed: int, start: int = 0, world: World | None = None
) -> StepSampler:
    """Build the sampler of a task's training samples, of which `max_samples` are used at most."""
    available = task.length("train")
    size = min(section.max_samples or available, available)
    return StepSampler(size, section.batch_size, section.steps, seed, start, world)


def build_step_collator(model: VisualChatModel, section: TrainSection) -> StepCollator:
    """Build what collates a step's samples into micro-batches, as the recipe says."""
    return StepCollator(
        section.micro_batch or section.batch_size, model.language_model, build_row_budget(section, model)
    )


def build_step_loader(
    model: VisualChatModel,
    task: Task,
    section: TrainSection,
    seed: int,
    start: int = 0,
    world: World | None = None,
    cache: SampleCache | None = None,
) -> StepLoader:
    """Build the loader of all batches from step `start` on; preparing samples ahead happens here, or in `cache`."""
    sampler = build_step_sampler(task, section, seed, start, world)
    budget = build_sample_budget(section, model)
    traces = TraceDataset(model, task, sampler.size, budget)
    if section.workers:
        require_fork()
    # Without a bad sample to spare, the first one ends the run with its own error, wherever it is met.
    skips_bad, workers = section.max_bad_samples > 0, section.workers
    dataset: TraceDataset | PreparedDataset = traces
    if section.preprocess == "ahead":
        used = sampler.used_indices()
        dataset = PreparedDataset(traces, used, workers, section.worker_seconds, skips_bad, cache)
        # Prepared samples only need collating, which is too little to be worth a worker.
        workers = 0
    collator = build_step_collator(model, section)
    pins = torch.cuda.is_available() and section.accelerator != "cpu"
    return StepLoader(dataset, sampler, collator, workers, section.worker_seconds, skips_bad, pins)
