"""State shared by the chats of one model: a lock around its forward passes, and its evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from weakref import WeakKeyDictionary

from torch import nn

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


_states: WeakKeyDictionary[VisualChatModel, _ModelState] = WeakKeyDictionary()
_states_lock = Lock()


def _state_of(model: VisualChatModel) -> _ModelState:
    with _states_lock:
        return _states.setdefault(model, _ModelState())


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
