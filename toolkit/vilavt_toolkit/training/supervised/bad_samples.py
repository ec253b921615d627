"""Samples that cannot be read while training runs: left out, counted, named, and too many of them end the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vilavt_toolkit.errors import TrainingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be learned from, such as one whose image has become unreadable."""

    index: int
    reason: str
    """The error's sentence, which names the sample."""


class BadSampleCount:
    """Counts the samples of a run that were left out, each once however many epochs meet it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """The value of `train.max_bad_samples`."""
        self._indices: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    def add_samples(self, samples: Sequence[BadSample]) -> None:
        """Count the samples that a step leaves out, and warn of each new one; raises TrainingError past the limit.

        A step is counted when it is taken, not when a worker prepares it, so that a resumed run counts the same.
        """
        for sample in samples:
            if sample.index in self._indices:
                continue
            self._indices.add(sample.index)
            if len(self) > self.limit:
                raise TrainingError(
                    f"{len(self)} samples cannot be read, the last being number {sample.index} of split 'train': "
                    f"{sample.reason} Mend them, or raise train.max_bad_samples."
                )
            log.warning("a sample is left out (%d of at most %d): %s", len(self), self.limit, sample.reason)

    def to_json(self) -> list[int]:
        """Return the indices of the samples, from which a resumed run goes on."""
        return sorted(self._indices)

    def load_json(self, indices: Iterable[int]) -> None:
        """Take over what `to_json` gave."""
        self._indices = {int(index) for index in indices}
