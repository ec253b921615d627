"""Task `mixture`: several data sets as one, mixed by weights or by how often an epoch repeats each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.data.fields import hash_parts
from vilavt_toolkit.data.splits import has_split
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import Part, tasks
from vilavt_toolkit.settings import part, setting
from vilavt_toolkit.utils.text import number_duplicates

_MOST_SAMPLES = 10**9
"""Samples of one epoch of a mixture, each of which takes ten bytes of memory."""
_TAG = "dataset"
"""The tag of a sample with the name of its data set."""


@dataclass(frozen=True)
class MixtureConfig:
    """Settings of task `mixture`."""

    tasks: list[Part] = part("task", "data sets that are mixed", many=True)
    names: list[str] = setting(
        help="names of the data sets in metrics and ids, in their order (empty: those of their tasks)", factory=list
    )
    weights: list[float] = setting(
        help="share of each data set among training samples; an epoch shows every sample at least once", factory=list
    )
    epochs: list[float] = setting(
        help="how often an epoch of training shows each data set, such as 2 or 0.5 (empty: once)", factory=list
    )

    def __post_init__(self) -> None:
        for key in ("names", "weights", "epochs"):
            values = getattr(self, key)
            if values and len(values) != len(self.tasks):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.tasks)} tasks. Give one for each.")
        if self.weights and self.epochs:
            raise ValueError("weights and epochs are two ways of mixing. Leave one out.")
        for key in ("weights", "epochs"):
            for value in getattr(self, key):
                if value <= 0:
                    raise ValueError(f"{key}: {value} is not above 0. Leave that task out.")
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise ValueError(f"names holds {twice} twice. Give each data set a name of its own.")
        # Ids of samples begin with the name and a slash, and so do metrics.
        for name in self.names:
            if not name or "/" in name:
                raise ValueError(f"names: {name!r} cannot be part of an id. Write a name without a slash.")


@tasks.register("mixture", MixtureConfig)
class Mixture(Task):
    """Several tasks as one: every stretch of its samples has the shares of the whole, and training shuffles them.

    Ids begin with the data set's name, and answers are scored by the task that they belong to. In splits other than
    `train` every sample comes once, and a task without the split adds none.
    """

    name: ClassVar[str] = "mixture"

    def __init__(self, config: MixtureConfig) -> None:
        self.config = config
        self._tasks: list[Task] = [each.build() for each in config.tasks]
        self._names = config.names or number_duplicates([each.name for each in config.tasks], "-")
        self._orders: dict[str, tuple[NDArray[np.int16], NDArray[np.int64]]] = {}

    @classmethod
    def tiny(cls) -> MixtureConfig:
        """Return settings of two small data sets."""
        entry = tasks.get("digit_scenes")
        config = entry.cls.tiny()
        other = replace(config, seed=1)
        return MixtureConfig([Part("task", entry.name, each) for each in (config, other)], weights=[3.0, 1.0])

    def parts(self) -> Sequence[Task]:
        """Return the tasks that are mixed."""
        return self._tasks

    def length(self, split: str) -> int:
        """Return the number of samples of a split; raises UsageError if no task has it."""
        return len(self._order(split)[0])

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`, that of its task under another id; raises IndexError."""
        number, inner = self._locate(split, index)
        return self._rename(self._tasks[number].sample(split, inner), number)

    def training_sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index` as it is learned from; raises IndexError."""
        number, inner = self._locate(split, index)
        return self._rename(self._tasks[number].training_sample(split, inner), number)

    def datasets(self) -> Sequence[str]:
        """Return the names of the data sets."""
        return self._names

    def dataset_of(self, split: str, index: int) -> int:
        """Return the number of the data set of a sample."""
        return self._locate(split, index)[0]

    def corpus(self) -> Iterator[str]:
        """Yield texts of all tasks by turns, since a tokenizer may read the first ones only."""
        for texts in zip_longest(*(task.corpus() for task in self._tasks)):
            yield from (text for text in texts if text is not None)

    def fingerprint(self, split: str) -> str:
        """Return a hash of the samples of all tasks; empty if none of them reads files."""
        found = [task.fingerprint(split) for task in self._tasks if _count_samples(task, split)]
        return hash_parts(*found) if any(found) else ""

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the score that the sample's own task gives."""
        return self._task_of(sample).score(self._restore(sample), answer)

    def score_turn(self, sample: Sample, text: str, answer: str | None) -> float:
        """Return the score that the sample's own task gives for its last turn."""
        return self._task_of(sample).score_turn(self._restore(sample), text, answer)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return the scores of every data set, and its task's own metrics, each with its name before it."""
        found: dict[str, Sequence[float]] = {}
        for task, name in zip(self._tasks, self._names, strict=True):
            pairs = [pair for pair in zip(samples, scores, strict=True) if pair[0].tags[_TAG] == name]
            own = task.metrics([self._restore(sample) for sample, _ in pairs], [score for _, score in pairs])
            found[f"{name}/score"] = [score for _, score in pairs]
            found |= {f"{name}/{key}": values for key, values in own.items()}
        return found

    def _order(self, split: str) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Return the number of the data set of every sample of a split, and its index there; raises UsageError."""
        if split not in self._orders:
            lengths = [_count_samples(task, split) for task in self._tasks]
            if not any(lengths):
                # Whichever task is asked says which splits there are.
                self._tasks[0].length(split)
            self._orders[split] = _interleave(lengths, self._count_shown(lengths) if split == "train" else lengths)
        return self._orders[split]

    def _count_shown(self, lengths: Sequence[int]) -> list[int]:
        """Return how many samples of each data set an epoch shows."""
        if self.config.epochs:
            return [max(1, round(rate * size)) for rate, size in zip(self.config.epochs, lengths, strict=True)]
        weights = self.config.weights
        if not weights:
            return list(lengths)
        # The data set that has the most samples for its weight comes once, and the others more often.
        scale = max(size / weight for weight, size in zip(weights, lengths, strict=True))
        shown = [max(size, round(weight * scale)) for weight, size in zip(weights, lengths, strict=True)]
        if sum(shown) > _MOST_SAMPLES:
            raise UsageError(
                f"task.weights: an epoch of the mixture has {sum(shown):,} samples, and the most is {_MOST_SAMPLES:,}. "
                "Give large data sets a larger weight."
            )
        return shown

    def _locate(self, split: str, index: int) -> tuple[int, int]:
        numbers, places = self._order(split)
        if not 0 <= index < len(numbers):
            raise IndexError(f"split '{split}' of 'mixture' has {len(numbers)} samples, so there is no {index}.")
        return int(numbers[index]), int(places[index])

    def _rename(self, sample: Sample, number: int) -> Sample:
        name = self._names[number]
        return replace(sample, id=f"{name}/{sample.id}", tags={**sample.tags, _TAG: name})

    def _restore(self, sample: Sample) -> Sample:
        return replace(sample, id=sample.id.removeprefix(f"{sample.tags[_TAG]}/"))

    def _task_of(self, sample: Sample) -> Task:
        return self._tasks[self._names.index(sample.tags[_TAG])]


def _interleave(lengths: Sequence[int], shown: Sequence[int]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Return data set and index of every sample: sets alternate evenly, and begin anew when they are through."""
    numbers = np.repeat(np.arange(len(shown), dtype=np.int16), shown)
    counts = np.concatenate([np.arange(count, dtype=np.int64) for count in shown])
    # The k-th of n samples stands at (k + 1/2) / n of the epoch, so that every stretch has the shares of the whole.
    order = np.argsort((counts + 0.5) / np.repeat(np.maximum(shown, 1), shown), kind="stable")
    return numbers[order], (counts % np.repeat(np.maximum(lengths, 1), shown))[order]


def _count_samples(task: Task, split: str) -> int:
    return task.length(split) if has_split(task, split) else 0
