"""Ctrl-C while training: the step is ended and kept, then the run stops."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)


class Interruption:
    """While entered, the first Ctrl-C is only noted in `asked`; the second interrupts at once, as without this."""

    # Anywhere inside a step the weights may be half changed, and saving them would lose the exact way on.
    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signal
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.warning("interrupted: the run stops once this step is taken and saved; again to stop at once.")
