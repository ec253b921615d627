"""The batches of a run of several processes: all processes get their batch, or all end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.stage import StoppedBetweenSteps
from vilavt_toolkit.training.world import World, agreeing

_READY, _STOPPED, _FAILED = range(3)


class AgreedBatches:
    """A context in which a loader's batches are had by all processes of a run, or by none.

    A sample that one process cannot read, and a request to stop that reaches it while it waits, are raised in every
    process at the same step. So they all save it, and none waits for one that has ended.
    """

    def __init__(self, loader: AbstractContextManager[Iterable[Any]], world: World, interruption: Interruption) -> None:
        self._loader, self._world, self._interruption = loader, world, interruption
        self._batches: Any = ()

    def __enter__(self) -> AgreedBatches:
        self._batches = self._loader.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._loader.__exit__(*error)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        for _ in range(len(self)):
            batch, error, state = None, None, _READY
            try:
                batch = next(batches)
            except StoppedBetweenSteps:
                state = _STOPPED
            # Any error at all: the other processes wait for this one.
            except Exception as found:
                error, state = found, _FAILED
            self._agree(state, error)
            yield batch

    def _agree(self, state: int, error: Exception | None) -> None:
        """Raise what any process has met."""
        (worst,) = self._world.find_largest(state)
        if worst == _FAILED:
            with agreeing():
                raise self._world.agree_on_error(error) or TrainingError("another process of the run has failed.")
        if worst == _STOPPED:
            self._interruption.agree(self._world)
            raise StoppedBetweenSteps
