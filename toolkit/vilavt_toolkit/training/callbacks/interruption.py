"""Ctrl-C and SIGTERM while training: the step is ended and kept, then the run stops."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM ended."""


class Interruption:
    """While entered, the first signal is only noted in `asked`; a second interrupts at once, as without this."""

    # Anywhere inside a step the weights may be half changed, and saving them would lose the exact way on.
    def __init__(self) -> None:
        self.asked = False
        self._signal = signal.SIGINT
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signal
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise self.exit()
        self.asked, self._signal = True, signal.Signals(number)
        what = "interrupted" if number == signal.SIGINT else "asked to end"
        log.warning("%s: the run stops once this step is taken and saved; again to stop at once.", what)

    def exit(self) -> BaseException:
        """What ends the program as the first signal asked: KeyboardInterrupt, or SystemExit with 143."""
        return SystemExit(TERMINATED) if self._signal == signal.SIGTERM else KeyboardInterrupt()
