"""Processes that prepare samples: forked from this one, deaf to signals, watched, and ended with it."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import numpy as np
import torch

from vilavt_toolkit.errors import LimitError, TrainingError, UsageError, VilavtError
from vilavt_toolkit.training.supervised.messages import receive_message, send_message
from vilavt_toolkit.utils.limits import describe_limit

BeginSample = Callable[[int], None]
"""Called with the index of each sample before it is prepared."""

_DEAF_TO = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that a terminal, SLURM or systemd sends to every process of a group. The parent alone answers them."""
_TASKS_AHEAD = 2
"""Tasks that a worker has been given, so that it begins the next one as soon as its result is taken."""
_POLL_SECONDS = 0.2
"""Between looks at a request to stop, and at a worker that may be stuck."""


@dataclass(frozen=True)
class _Failure:
    """An error as a worker sends it."""

    error: Exception


class WorkerPool:
    """A context in which worker processes apply a function to tasks; without workers this process does."""

    def __init__(
        self,
        prepare: Callable[[Any, BeginSample], Any],
        workers: int,
        seconds: float,
        check_stop: Callable[[], None] = lambda: None,
        pins: bool = False,
    ) -> None:
        """`prepare` gets a task, and says of which sample it begins.

        A worker that has not begun another one for `seconds` is stuck. `check_stop` is called while results are waited
        for and may raise. With `pins` the arrays of results are in pinned memory.
        """
        self._pins = pins
        self._prepare, self._count, self._seconds, self._check_stop = prepare, workers, seconds, check_stop
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        """Start the workers; raises UsageError where processes cannot be forked, TrainingError if they cannot start."""
        if not self._count:
            return self
        context = multiprocessing.get_context(require_fork())
        try:
            # A forked process inherits which signals are blocked, so that there is no moment in which one reaches it.
            with _blocked_signals():
                for _ in range(self._count):
                    self._workers.append(_Worker(context, self._prepare))
        except OSError as error:
            self.close()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise TrainingError(f"a worker cannot be started ({error.strerror}). Lower train.workers.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once, stuck ones too."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of tasks in their order; raises the error that a task met, and TrainingError.

        TrainingError says that a worker has died or is stuck.
        """
        if not self._count:
            for task in tasks:
                yield self._prepare(task, lambda index: self._check_stop())
            return
        left, busy = iter(tasks), deque[_Worker]()
        # Workers take turns, so that results come back in the order of the tasks.
        for worker in self._workers * _TASKS_AHEAD:
            self._give_task(worker, left, busy)
        while busy:
            worker = busy.popleft()
            result = self._take_result(worker)
            self._give_task(worker, left, busy)
            yield result

    def _give_task(self, worker: _Worker, tasks: Iterator[Any], busy: deque[_Worker]) -> None:
        for task in islice(tasks, 1):
            # A worker that is dead is told of when its result is waited for.
            with suppress(ConnectionError):
                send_message(worker.connection, task)
            busy.append(worker)

    def _take_result(self, worker: _Worker) -> Any:
        begun, since = worker.begun(), time.monotonic()
        # The clock starts again with every sample, since a step may have hundreds of slow ones.
        while not wait([worker.connection], _POLL_SECONDS):
            self._check_stop()
            if worker.begun() != begun:
                begun, since = worker.begun(), time.monotonic()
            elif time.monotonic() - since > self._seconds:
                raise self._describe_stuck(worker)
        worker.connection.settimeout(self._seconds)
        try:
            result = receive_message(worker.connection, self._pins)
        except TimeoutError:
            raise self._describe_stuck(worker) from None
        except (EOFError, ConnectionError):
            raise worker.describe_end() from None
        if isinstance(result, _Failure):
            raise result.error
        return result

    def _describe_stuck(self, worker: _Worker) -> TrainingError:
        return TrainingError(
            f"a worker has been at sample {worker.begun()[1]} of split 'train' for {self._seconds:g} seconds. Look at "
            "that sample, or raise train.worker_seconds."
        )


class _Worker:
    """A worker process, this end of its socket, and the number of the sample that it is at."""

    def __init__(self, context: Any, prepare: Callable[[Any, BeginSample], Any]) -> None:
        self.connection, theirs = socket.socketpair()
        # Memory without a file is shared with a forked process: how many samples it has begun, and the latest index.
        self._begun = np.frombuffer(mmap.mmap(-1, 16), dtype=np.int64)
        try:
            self.process = context.Process(target=_serve, args=(prepare, theirs, self._begun), daemon=True)
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            # Its end lives in the worker alone, so that reading ends when the worker does.
            theirs.close()

    def begun(self) -> tuple[int, int]:
        """Return how many samples it has begun to prepare, and the index of the latest."""
        return int(self._begun[0]), int(self._begun[1])

    def describe_end(self) -> TrainingError:
        """Return the error of a worker that has ended by itself."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return TrainingError(
            f"a worker {how} at sample {self.begun()[1]} of split 'train'. If memory was short, lower train.workers. "
            "Otherwise look at that sample."
        )


@contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_fork() -> str:
    """Return the start method of workers, the only one that needs no pickling; raises UsageError if there is none."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError("train.workers: this system cannot fork processes. Set train.workers to 0.")
    return "fork"


# --- In the worker ---------------------------------------------------------------------------------------------------


def _serve(
    prepare: Callable[[Any, BeginSample], Any], connection: socket.socket, begun: np.ndarray[Any, np.dtype[np.int64]]
) -> None:
    """Prepare the tasks that come through the connection, until it is closed."""
    # The workers already use every core.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def begin_sample(index: int) -> None:
        begun[:] = begun[0] + 1, index

    with suppress(EOFError, ConnectionError):
        while True:
            task = receive_message(connection)
            try:
                result = prepare(task, begin_sample)
            except Exception as error:
                result = _Failure(_make_portable(error))
            send_message(connection, result)


def _end_with_parent() -> None:
    # A parent that was killed closes nothing here, since workers that were forked later hold its ends too.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_portable(error: Exception) -> Exception:
    """Return an error that can be sent: a defect with the traceback of this process, or a sentence for a user."""
    if limit := describe_limit(error, "train"):
        return LimitError(limit)
    if not isinstance(error, VilavtError):
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    # An error's class may take arguments that it does not keep, or refuse to be pickled in any way it likes.
    except Exception:
        if isinstance(error, VilavtError):
            return TrainingError(str(error))
        return RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))
