"""What the chats of one model share: the mode that it is in, and that one at a time goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from weakref import WeakKeyDictionary

from torch import nn

from vilavt_toolkit.models.model import VisualChatModel


class _Shared:
    """What is known of one model."""

    def __init__(self) -> None:
        self.forward = RLock()
        """Held while something goes through the model: hooks and settings of a forward are seen by all of them."""
        self.mode = Lock()
        self.evaluations = 0
        """How many want the model in evaluation mode now."""
        self.training: list[nn.Module] = []
        """The modules that were in training mode before."""


_known: WeakKeyDictionary[VisualChatModel, _Shared] = WeakKeyDictionary()
_knowing = Lock()


def _of(model: VisualChatModel) -> _Shared:
    with _knowing:
        return _known.setdefault(model, _Shared())


@contextmanager
def exclusively(model: VisualChatModel) -> Iterator[None]:
    """Inside, no other thread's chat goes through the model."""
    with _of(model).forward:
        yield


@contextmanager
def evaluating(model: VisualChatModel) -> Iterator[None]:
    """The model in evaluation mode; behind the last of several, every module in the mode that it was in."""
    shared, counted = _of(model), 0
    try:
        # Inside, as an interruption while the modules are gone through must be counted out again too.
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
