"""Ctrl-C and SIGTERM while training: the current step is finished and saved, then the run stops."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from vilavt_toolkit.errors import TERMINATED

log = logging.getLogger(__name__)


class Interruption:
    """A context in which the first signal only sets `is_requested`; a second one interrupts at once.

    Python may deliver a signal anywhere inside a step, where some weights are changed and others are not. A checkpoint
    of that moment could not be resumed exactly.
    """

    def __init__(self) -> None:
        self.is_requested = False
        """True once a signal has asked the run to stop."""
        self._signal = signal.SIGINT
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        # Python sets and runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise self.build_exit()
        self.is_requested, self._signal = True, signal.Signals(number)
        reason = "interrupted" if number == signal.SIGINT else "asked to end"
        log.warning("%s: the run stops after this step is saved. Repeat to stop at once.", reason)

    def build_exit(self) -> BaseException:
        """Build the exception that ends the program: KeyboardInterrupt, or SystemExit(143) after SIGTERM."""
        return SystemExit(TERMINATED) if self._signal == signal.SIGTERM else KeyboardInterrupt()
