"""State shared by the chats of one model: a lock around its forward passes, and its evaluation mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.models.model import VisualChatModel


class _ModelState:
    """The lock and the mode of one model."""

    def __init__(self) -> None:
        self.forward = RLock()
        """Held during a forward pass, since hooks and settings of one pass would be seen by another."""
        self.mode = Lock()
        self.evaluations = 0
        """Number of users that need evaluation mode now."""
        self.training: list[nn.Module] = []
        """The modules that were in training mode before."""
        self.is_orphaned = False
        """True in a process that was forked while another thread held the model: that thread will never let go."""

    def check_after_fork(self) -> None:
        """Note whether the model is held by a thread that this process, a fork, does not have."""
        for lock in (self.forward, self.mode):
            if lock.acquire(blocking=False):
                lock.release()
            else:
                self.is_orphaned = True


_states: WeakKeyDictionary[VisualChatModel, _ModelState] = WeakKeyDictionary()
_states_lock = Lock()
_is_new_fork = False
"""True in a process that was forked, until it uses a model."""


def _state_of(model: VisualChatModel) -> _ModelState:
    """Return the state of a model; raises UsageError if nobody can use the model in this process."""
    global _is_new_fork
    with _states_lock:
        state = _states.setdefault(model, _ModelState())
    if state.is_orphaned:
        # The lock could be made anew, but the other thread's forward pass has left hooks and settings half changed.
        raise UsageError(
            "this process was forked while another thread was asking the model, which cannot be used here. Start the "
            "process by 'spawn' and load the model there, or fork while nothing is asked."
        )
    if _is_new_fork:
        # GNU's OpenMP waits for ever for the threads that it had before the fork. One thread needs no other.
        torch.set_num_threads(1)
        _is_new_fork = False
    return state


def _check_states_after_fork() -> None:
    global _states_lock, _is_new_fork
    _states_lock, _is_new_fork = Lock(), True
    for state in list(_states.values()):
        state.check_after_fork()


# Not on Windows, which cannot fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_check_states_after_fork)


@contextmanager
def model_lock(model: VisualChatModel) -> Iterator[None]:
    """Hold the model. Inside, no other thread's chat runs a forward pass. One thread may enter it again."""
    with _state_of(model).forward:
        yield


@contextmanager
def eval_mode(model: VisualChatModel) -> Iterator[None]:
    """Put the model into evaluation mode. When the last of several users leaves, every module gets its mode back."""
    shared, counted = _state_of(model), 0
    try:
        # Counted inside the `try`: an interruption in the middle of `model.eval()` must be undone too.
        with shared.mode:
            shared.evaluations += 1
            counted = 1
            shared.training += [module for module in model.modules() if module.training]
            model.eval()
        yield
    finally:
        with shared.mode:
            shared.evaluations -= counted
            if not shared.evaluations:
                for module in shared.training:
                    module.training = True
                shared.training = []
