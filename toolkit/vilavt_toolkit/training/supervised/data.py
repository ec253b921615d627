"""Training data: samples made into trajectories ahead of time or in workers, never in the training step."""

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
from vilavt_toolkit.dialogue.traces import session_of
from vilavt_toolkit.errors import UsageError, VilavtError
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.progress import track

Prepared = tuple[Trajectory, list[View]]


class TraceDataset(Dataset[Prepared]):
    """A task's training samples as trajectories and views, made when asked for."""

    def __init__(self, model: VisualChatModel, task: Task, size: int) -> None:
        self.model, self.task, self.size = model, task, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prepared:
        session = session_of(self.model, self.task.sample("train", index))
        return session.trajectory, session.views


class StreamedDataset(Dataset[Prepared | VilavtError]):
    """The same samples for a loader's workers; a sample that cannot be made ready comes as its error."""

    # Raised in a worker, torch would bury it in a traceback.
    def __init__(self, traces: TraceDataset) -> None:
        self.traces = traces

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, index: int) -> Prepared | VilavtError:
        try:
            return self.traces[index]
        except VilavtError as error:
            return error


class PreparedDataset(Dataset[Prepared]):
    """Samples made ready once, in `workers` processes, before the first step."""

    def __init__(self, dataset: TraceDataset, workers: int) -> None:
        chunks = [range(start, min(start + 64, len(dataset))) for start in range(0, len(dataset), 64)]
        self._rows: list[tuple[Trajectory, list[tuple[np.ndarray[Any, Any], tuple[int, ...]]]]] = []
        for rows in track(_in_processes(dataset, chunks, workers), len(chunks), "making samples ready"):
            self._rows += rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Prepared:
        trajectory, views = self._rows[index]
        return trajectory, [View(torch.from_numpy(data), size) for data, size in views]


_dataset: TraceDataset | None = None


def _make(chunk: range) -> list[Any]:
    # Arrays, not tensors: torch would open a shared-memory file for each.
    assert _dataset is not None
    made = []
    for index in chunk:
        trajectory, views = _dataset[index]
        made.append((trajectory, [(view.data.numpy(), view.size) for view in views]))
    return made


def _in_processes(dataset: TraceDataset, chunks: Sequence[range], workers: int) -> Iterator[list[Any]]:
    global _dataset
    _dataset = dataset  # forked, never pickled
    try:
        if workers == 0:
            yield from map(_make, chunks)
            return
        context = multiprocessing.get_context(_fork())
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
            yield from pool.map(_make, chunks)
    finally:
        _dataset = None


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; only the first has something to say


def _fork() -> str:
    """How workers start: a model and its tokenizer cannot be sent to them."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError("train.workers: this system cannot fork processes; set train.workers to 0.")
    return "fork"


class StepSampler(Sampler[list[int]]):
    """The samples of every step: shuffled epochs, a pure function of seed and step, so that resuming is exact."""

    def __init__(self, size: int, batch_size: int, steps: int, seed: int, start: int = 0) -> None:
        self.size, self.batch_size, self.steps, self.seed, self.start = size, batch_size, steps, seed, start
        self._shuffled = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.indices, range(self.start, self.steps))

    def indices(self, step: int) -> list[int]:
        """The samples of one step."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._order(place // self.size)[place % self.size]) for place in places]

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if epoch != self._shuffled[0]:
            self._shuffled = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._shuffled[1]


class StepBatch:
    """What one optimizer step learns from: micro-batches, and how many of the model's own tokens they hold in all."""

    # No dataclass: Lightning would want to change its fields, to turn numbers to the precision of training.
    def __init__(self, micro: Sequence[Batch], order: Sequence[int] = ()) -> None:
        self.micro = tuple(micro)
        self.order = tuple(order)
        """Which of the step's samples each row is, counted through the micro-batches."""
        self.produced = sum(len(batch.targets) for batch in self.micro)
        self.turns = sum(len(batch.starts) for batch in self.micro)
        """How many turns of the model's own there are that answer or call the tool."""

    def to(self, device: torch.device | str) -> StepBatch:
        """The batch with its tensors on `device`."""
        return StepBatch([batch.to(device) for batch in self.micro], self.order)


@dataclass(frozen=True)
class StepCollator:
    """Collates the samples of one step into micro-batches."""

    micro_batch: int
    language_model: LanguageModel

    def __call__(self, samples: Sequence[Prepared | VilavtError]) -> StepBatch | VilavtError:
        """The batch of a step, or the first error among its samples."""
        ready: list[Prepared] = []
        for sample in samples:
            if isinstance(sample, VilavtError):
                return sample
            ready.append(sample)
        # Of like lengths together, so that little is padded; the gradient is the same for every split.
        order = sorted(range(len(ready)), key=lambda place: len(ready[place][0].ids))
        ready = [ready[place] for place in order]
        micro = []
        for start in range(0, len(ready), self.micro_batch):
            part = ready[start : start + self.micro_batch]
            micro.append(collate([row for row, _ in part], [views for _, views in part], self.language_model))
        return StepBatch(micro, order)


class StepLoader(DataLoader[Any]):
    """Batches by step; raises the error that a worker met, as it would be without workers."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, VilavtError):
                raise batch
            yield batch


def step_sampler(task: Task, section: TrainSection, seed: int, start: int = 0) -> StepSampler:
    """The training samples of every step, as the task counts them."""
    available = task.length("train")
    return StepSampler(min(section.examples or available, available), section.batch_size, section.steps, seed, start)


def step_loader(model: VisualChatModel, task: Task, section: TrainSection, seed: int, start: int = 0) -> StepLoader:
    """The batches of all steps from `start` on."""
    sampler = step_sampler(task, section, seed, start)
    traces = TraceDataset(model, task, sampler.size)
    ahead = section.prepare == "ahead"
    dataset: Dataset[Any] = PreparedDataset(traces, section.workers) if ahead else StreamedDataset(traces)
    workers = 0 if ahead else section.workers
    return StepLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=StepCollator(section.micro_batch or section.batch_size, model.language_model),
        num_workers=workers,
        multiprocessing_context=_fork() if workers else None,
    )
