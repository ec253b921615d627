"""Ctrl-C, SIGTERM and SIGHUP while a stage runs: between them the stage ends whole."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from vilavt_toolkit.errors import TERMINATED
from vilavt_toolkit.training.launch import is_launched_here
from vilavt_toolkit.training.stage import StoppedBetweenSteps
from vilavt_toolkit.training.world import World

log = logging.getLogger(__name__)

_SAME_SIGNAL_SECONDS = 1.0
"""Within which a signal that comes from the launcher and from a terminal or SLURM too is one request."""


class Interruption:
    """A context in which a signal ends the program as an exception does: what was started is ended too.

    While steps are taken (`deferred`) the first signal only sets `is_requested`, and a second one ends the program at
    once. Python may deliver a signal anywhere inside a step, where some weights are changed and others are not. A
    checkpoint of that moment could not be resumed exactly.
    """

    def __init__(self) -> None:
        self.is_requested = False
        """True once a signal has asked the run to stop."""
        self._is_deferred = False
        self._signal = signal.SIGINT
        self._requested_at = 0.0
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        # Python sets and runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in _handled_signals():
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def replace_handlers(self) -> None:
        """Take the signals back from Lightning, whose handler makes a collective call in the process that it is in."""
        for number in self._previous_handlers:
            signal.signal(number, self._handle_signal)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a first signal wait for the end of the step that it comes in."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def agree(self, world: World) -> bool:
        """Return True if any process of the run was asked to stop; then this one counts as asked too."""
        (number,) = world.find_largest(int(self._signal) if self.is_requested else 0)
        if number and not self.is_requested:
            self.is_requested, self._signal = True, signal.Signals(number)
        return self.is_requested

    def check_between_steps(self) -> None:
        """Raise StoppedBetweenSteps if the run is to stop; called where no weight is being changed."""
        if self.is_requested:
            raise StoppedBetweenSteps

    def build_exit(self) -> BaseException:
        """Build the exception that ends the program: KeyboardInterrupt, or SystemExit(143) after another signal."""
        return KeyboardInterrupt() if self._signal == signal.SIGINT else SystemExit(TERMINATED)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        # The launcher sends signals on, which may also have come here directly.
        is_repeated = is_launched_here() and time.monotonic() - self._requested_at < _SAME_SIGNAL_SECONDS
        if self.is_requested and is_repeated:
            return
        is_second, self.is_requested, self._signal = self.is_requested, True, signal.Signals(number)
        self._requested_at = time.monotonic()
        if is_second or not self._is_deferred:
            raise self.build_exit()
        reason = "interrupted" if number == signal.SIGINT else "asked to end"
        log.warning("%s: the run stops after this step is saved. Repeat to stop at once.", reason)


def _handled_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to end."""
    # SIGHUP says that the terminal is gone, unless `nohup` has switched it off.
    hangup = getattr(signal, "SIGHUP", None)
    is_heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if hangup is not None and is_heard else [])]
