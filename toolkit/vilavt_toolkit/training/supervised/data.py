"""Training data: samples turned into trajectories, before training or in workers, never in the training step."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import LanguageModel, Task, Trajectory, View
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import UsageError, VilavtError
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.progress import track_progress

PreparedSample = tuple[Trajectory, list[View]]
"""A sample as the model is trained on it: ids and regions, and each region's crop, ready for the encoder."""
_CHUNK = 64
"""Samples that a worker prepares before it sends them back."""


class TraceDataset(Dataset[PreparedSample]):
    """A task's training samples as trajectories and views, prepared on access."""

    def __init__(self, model: VisualChatModel, task: Task, size: int) -> None:
        self.model, self.task, self.size = model, task, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> PreparedSample:
        session = build_trace_session(self.model, self.task.sample("train", index))
        return session.trajectory, session.views


class StreamedDataset(Dataset[PreparedSample | VilavtError]):
    """The same samples for the workers of a loader; for a sample that cannot be prepared, the error is the item.

    If it were raised in a worker, torch would put the worker's traceback into its message.
    """

    def __init__(self, traces: TraceDataset) -> None:
        self.traces = traces

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, index: int) -> PreparedSample | VilavtError:
        try:
            return self.traces[index]
        except VilavtError as error:
            return error


class PreparedDataset(Dataset[PreparedSample]):
    """All samples prepared once, in `workers` processes, before the first step."""

    def __init__(self, dataset: TraceDataset, workers: int) -> None:
        chunks = [range(start, min(start + _CHUNK, len(dataset))) for start in range(0, len(dataset), _CHUNK)]
        self._rows: list[tuple[Trajectory, list[tuple[np.ndarray[Any, Any], tuple[int, ...]]]]] = []
        for rows in track_progress(_prepare_chunks(dataset, chunks, workers), len(chunks), "preparing samples"):
            self._rows += rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PreparedSample:
        trajectory, views = self._rows[index]
        return trajectory, [View(torch.from_numpy(data), size) for data, size in views]


# A model with its tokenizer cannot be pickled. Forked workers inherit this global from their parent instead: it is set
# just before they start, and the pool sends them ranges of indices only.
_worker_dataset: TraceDataset | None = None


def _prepare_chunk(chunk: range) -> list[Any]:
    assert _worker_dataset is not None
    rows = []
    for index in chunk:
        trajectory, views = _worker_dataset[index]
        # Arrays, because torch opens a shared-memory file for each tensor that is sent to another process.
        rows.append((trajectory, [(view.data.numpy(), view.size) for view in views]))
    return rows


def _prepare_chunks(dataset: TraceDataset, chunks: Sequence[range], workers: int) -> Iterator[list[Any]]:
    global _worker_dataset
    _worker_dataset = dataset
    try:
        if workers == 0:
            yield from map(_prepare_chunk, chunks)
            return
        context = multiprocessing.get_context(_require_fork())
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            yield from pool.map(_prepare_chunk, chunks)
    finally:
        _worker_dataset = None


def _start_worker() -> None:
    # The workers already use every core.
    torch.set_num_threads(1)
    # A terminal sends Ctrl-C to every process. The parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _require_fork() -> str:
    """Return the start method of workers, the only one that needs no pickling; raises UsageError if there is none."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError("train.workers: this system cannot fork processes. Set train.workers to 0.")
    return "fork"


class StepSampler(Sampler[list[int]]):
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

    def __call__(self, samples: Sequence[PreparedSample | VilavtError]) -> StepBatch | VilavtError:
        """Return the batch of a step, or the first error among its samples."""
        prepared: list[PreparedSample] = []
        for sample in samples:
            if isinstance(sample, VilavtError):
                return sample
            prepared.append(sample)
        # Sorted by length, so that rows of one micro-batch need little padding. No gradient depends on the split.
        order = sorted(range(len(prepared)), key=lambda place: len(prepared[place][0].ids))
        prepared = [prepared[place] for place in order]
        micro_batches = []
        for start in range(0, len(prepared), self.micro_batch):
            part = prepared[start : start + self.micro_batch]
            trajectories, views = [row for row, _ in part], [views for _, views in part]
            micro_batches.append(collate(trajectories, views, self.language_model))
        return StepBatch(micro_batches, order)


class StepLoader(DataLoader[Any]):
    """Loads batches by step, and raises the error that a worker met as if there were no workers."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, VilavtError):
                raise batch
            yield batch


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
    is_ahead = section.preprocess == "ahead"
    dataset: Dataset[Any] = PreparedDataset(traces, section.workers) if is_ahead else StreamedDataset(traces)
    # Prepared samples only need collating, which is too little to be worth a worker.
    workers = 0 if is_ahead else section.workers
    return StepLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=StepCollator(section.micro_batch or section.batch_size, model.language_model),
        num_workers=workers,
        multiprocessing_context=_require_fork() if workers else None,
    )
