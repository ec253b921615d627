"""The lock of a model: one thread's forward at a time, and a sentence where a fork has left it held for ever."""

from __future__ import annotations

import os
import signal
from threading import Event, Thread

import numpy as np
import pytest
import torch

import vilavt_toolkit as vt
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.model_lock import model_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def answer_of_child(act) -> str:
    """What `act` returns in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(60)  # should it hang after all
            os.write(writing, act().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told


def ask(model) -> str:
    try:
        return vt.ask(np.zeros((64, 64, 3), np.uint8), "what?", model=model, max_new_tokens=1).why
    except UsageError as error:
        return f"refused: {error}"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_while_another_thread_asks_says_so_at_its_first_question(tiny_model):
    held, done = Event(), Event()

    def hold():
        with model_lock(tiny_model):
            held.set()
            done.wait()

    asking = Thread(target=hold)
    asking.start()
    held.wait()
    try:
        told = answer_of_child(lambda: ask(tiny_model))
    finally:
        done.set()
        asking.join()
    assert told.startswith("refused: this process was forked while another thread was asking the model")
    assert not ask(tiny_model).startswith("refused"), "the process itself goes on"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_between_questions_answers_whatever_threads_torch_had(tiny_model):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        why = ask(tiny_model)
        assert answer_of_child(lambda: f"{ask(tiny_model)}, {torch.get_num_threads()} thread") == f"{why}, 1 thread"
    finally:
        torch.set_num_threads(threads)
