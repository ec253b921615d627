"""Workers: in order, deaf to signals, missed when they die or hang, and gone with their parent."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from vilavt_toolkit.errors import InputError, LimitError, RecipeErrors, TrainingError, VilavtError
from vilavt_toolkit.training.supervised.workers import WorkerPool
from vilavt_toolkit.utils.limits import explained_limits

ROOT = Path(__file__).parents[4]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def squared(task, begin_sample):
    begin_sample(task)
    return torch.full((3,), task**2)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("tasks", [0, 2, 11])
def test_results_come_in_the_order_of_their_tasks(workers, tasks):
    with WorkerPool(squared, workers, 60) as pool:
        assert [int(result[0]) for result in pool.map(range(tasks))] == [task**2 for task in range(tasks)]


def failing(error):
    def prepare(task, begin_sample):
        begin_sample(task)
        if task == 2:
            raise error
        return task

    return prepare


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [InputError("sample 2: no image."), KeyError("a defect")])
def test_an_error_comes_in_its_turn_as_if_there_were_no_workers(workers, error):
    with WorkerPool(failing(error), workers, 60) as pool:
        results = pool.map(range(9))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(type(error)) as told:
            next(results)
    assert str(told.value) == str(error)
    is_defect_of_worker = workers and not isinstance(error, VilavtError)
    assert any("in prepare" in note for note in getattr(told.value, "__notes__", ())) is bool(is_defect_of_worker)


class Unsendable(Exception):
    def __init__(self, first, second) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RecipeErrors([InputError("one."), InputError("two.")]), TrainingError, "InputError: one.\nInputError: two."),
        (Unsendable("this", "that"), RuntimeError, "Unsendable: this and that"),
        (OSError(24, "Too many open files"), LimitError, "`ulimit -n 4096`, or lower train.workers."),
        (
            MemoryError(),
            LimitError,
            "there is not enough memory. Lower train.micro_batch, train.pack_tokens or train.workers.",
        ),
    ],
)
def test_an_error_that_cannot_be_sent_or_is_a_limit_is_told_in_words(error, kind, words):
    with WorkerPool(failing(error), 1, 60) as pool, pytest.raises(kind) as told:
        list(pool.map(range(4)))
    assert words in str(told.value)


def ending(how):
    def prepare(task, begin_sample):
        begin_sample(100 + task)
        if task == 3:
            how()
        return task

    return prepare


def test_a_worker_that_dies_is_missed_in_its_turn_with_the_sample_it_was_at():
    with WorkerPool(ending(lambda: os.kill(os.getpid(), signal.SIGKILL)), 2, 60) as pool:
        results = pool.map(range(9))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(TrainingError, match=r"ended by SIGKILL at sample 103 .*lower train\.workers"):
            next(results)


def test_a_worker_that_leaves_is_missed_too():
    with WorkerPool(ending(lambda: os._exit(7)), 1, 60) as pool, pytest.raises(TrainingError, match="with code 7"):
        list(pool.map(range(9)))


def test_a_stuck_worker_is_told_with_its_sample_and_ended():
    with WorkerPool(ending(lambda: threading.Event().wait()), 2, 0.3) as pool:
        processes = [worker.process for worker in pool._workers]
        with pytest.raises(TrainingError, match=r"at sample 103 .* for 0\.3 seconds\. .*train\.worker_seconds"):
            list(pool.map(range(9)))
    assert not any(process.is_alive() for process in processes)


def test_a_request_to_stop_is_heard_while_a_worker_is_waited_for():
    def check_stop():
        raise KeyboardInterrupt

    pool = WorkerPool(ending(lambda: threading.Event().wait()), 1, 60, check_stop)
    with pool, pytest.raises(KeyboardInterrupt):
        list(pool.map(range(9)))
    assert multiprocessing.active_children() == []


def test_workers_are_deaf_to_the_signals_of_their_group():
    with WorkerPool(squared, 2, 60) as pool:
        for worker in pool._workers:
            for number in SIGNALS:
                os.kill(worker.process.pid, number)
        assert [int(result[0]) for result in pool.map(range(5))] == [0, 1, 4, 9, 16]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint(SIGNALS), "the parent is not"


def test_too_few_descriptors_are_told_with_the_limit_and_leave_no_worker():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    try:
        with (
            pytest.raises(LimitError, match=r"the 40 that .*`ulimit -n 4096`, or lower train\.workers"),
            explained_limits("train"),
            WorkerPool(squared, 40, 60),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert multiprocessing.active_children() == []


KILLED = """
import os, sys, threading
sys.path[:0] = {paths}
from vilavt_toolkit.training.supervised.workers import WorkerPool
with WorkerPool(lambda task, begin: threading.Event().wait(), 2, 60) as pool:
    results = pool.map(range(9))
    threading.Thread(target=next, args=(results,), daemon=True).start()
    print(*(worker.process.pid for worker in pool._workers), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_parent_that_was_killed():
    code = KILLED.format(paths=[str(ROOT / "toolkit"), str(ROOT / "components")])
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL
    left = [int(number) for number in done.stdout.split()]
    assert len(left) == 2
    until = time.monotonic() + 30
    while left and time.monotonic() < until:
        left = [number for number in left if is_alive(number)]
        time.sleep(0.02)
    assert left == []


def is_alive(process: int) -> bool:
    with suppress(OSError):
        # A process that nobody has waited for yet is still listed.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
