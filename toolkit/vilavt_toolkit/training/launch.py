"""Starting the processes of a run, one for each device, and ending them together: `vilavt train` is its own launcher.

Every process runs the command again, with its number in the variables that torchrun sets too.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import IO, Any

from vilavt_toolkit.errors import TERMINATED, TrainingError, UsageError

log = logging.getLogger(__name__)

LOST_RANK = 117
"""Exit code of a process that ended because another one of its run had gone."""
_LAUNCHER_VARIABLE = "VILAVT_LAUNCHER"
"""Holds the number of the process that started this one as one of several."""
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
"""For the other processes to end by themselves when one has failed: they may be saving, or hear of it as an error."""
_MOST_LINES = 20
"""Lines that are shown of what a failed process wrote, if it is not the first, which speaks for itself."""


def is_launched_here() -> bool:
    """Return True if `vilavt` started this process as one of several."""
    return _LAUNCHER_VARIABLE in os.environ


def launch_ranks(arguments: Sequence[str], devices: int, nodes: int) -> None:
    """Run a command of `vilavt` as one process for each of `devices`, and return when all have ended well.

    Raises TrainingError for a process that was killed, and SystemExit with the code of one that has told its error.
    """
    node, address, port = _find_meeting_point(nodes)
    with ExitStack() as stack:
        ranks: list[_Rank] = []
        supervisor = stack.enter_context(_Supervisor(ranks))
        for local in range(devices):
            rank = node * devices + local
            numbers = {
                "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": nodes * devices, "LOCAL_WORLD_SIZE": devices,
                "NODE_RANK": node, "MASTER_PORT": port, _LAUNCHER_VARIABLE: os.getpid(),
            }  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in numbers.items()}}
            environment["MASTER_ADDR"] = address
            # Otherwise each process would take every core.
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
            told = stack.enter_context(tempfile.TemporaryFile()) if local else None
            ranks.append(_Rank(rank, arguments, environment, told))
        supervisor.wait()


def _find_meeting_point(nodes: int) -> tuple[int, str, int]:
    """Return the number of this node, and the address and port where all processes meet; raises UsageError."""
    if nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return 0, "127.0.0.1", free.getsockname()[1]
    try:
        node, port = int(os.environ["NODE_RANK"]), int(os.environ["MASTER_PORT"])
        return node, os.environ["MASTER_ADDR"], port
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"train.nodes is {nodes}, and every node must know where to meet. Set NODE_RANK (0 to {nodes - 1}), "
            "MASTER_ADDR and MASTER_PORT on each, or start the command with torchrun or srun."
        ) from error


class _Rank:
    """One process of the run, in a session of its own with its workers, so that they can be ended together."""

    def __init__(
        self, number: int, arguments: Sequence[str], environment: dict[str, str], told: IO[bytes] | None
    ) -> None:
        """`told` takes the output of a process that is not the first."""
        self.number, self._told = number, told
        code = "from vilavt_toolkit.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            # The terminal's signals reach the supervisor alone, which sends them on once.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=None if told is None else subprocess.DEVNULL,
            stderr=told,
        )

    def end(self) -> None:
        """Kill the process and its workers."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def read_told(self) -> str:
        """Return the last lines that the process wrote; empty for the first, which writes to the user."""
        if self._told is None:
            return ""
        self._told.seek(0)
        return "\n".join(self._told.read().decode(errors="replace").splitlines()[-_MOST_LINES:])


class _Supervisor:
    """A context that sends signals on to all processes, waits for them, and leaves none behind."""

    def __init__(self, ranks: list[_Rank]) -> None:
        self._ranks = ranks
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> _Supervisor:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # SIGHUP says that the terminal is gone, unless `nohup` has switched it off.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._send_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self._ranks:
            rank.end()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _send_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def wait(self) -> None:
        """Wait for all processes; if one fails, the others get some seconds and are then killed. Raises as told."""
        failed_at: float | None = None
        first: _Rank | None = None
        while any(rank.process.poll() is None for rank in self._ranks):
            time.sleep(_POLL_SECONDS)
            if first is None:
                first = next((rank for rank in self._ranks if rank.process.poll()), None)
                failed_at = time.monotonic()
            elif failed_at is not None and time.monotonic() - failed_at > _GRACE_SECONDS:
                break
        first = first or next((rank for rank in self._ranks if rank.process.poll()), None)
        if first is not None:
            self._tell(first)

    def _tell(self, first: _Rank) -> None:
        """Raise the end of the run, of which `first` was the first process to fail."""
        codes = {rank.number: rank.process.poll() for rank in self._ranks}
        if self._signal is not None:
            raise KeyboardInterrupt if self._signal == signal.SIGINT else SystemExit(TERMINATED)
        killed = next((rank for rank in self._ranks if (codes[rank.number] or 0) < 0), None)
        if killed is not None:
            name = signal.Signals(-(codes[killed.number] or 0)).name
            raise TrainingError(
                f"rank {killed.number} was ended by {name}, and the others with it. If memory was short, lower "
                "train.micro_batch or train.workers. Go on from the last checkpoint with --resume."
            )
        # A process that lost another one has nothing to tell.
        own = [rank for rank in self._ranks if codes[rank.number] not in (None, 0, LOST_RANK)]
        teller = own[0] if own else first
        if told := teller.read_told():
            sys.stderr.write(f"{told}\n")
        raise SystemExit(teller.process.returncode)


def end_with_launcher() -> None:
    """Let this process end when the one that launched it does; it may have been killed and cannot say so."""
    number = os.environ.get(_LAUNCHER_VARIABLE)

    def watch() -> None:
        while str(os.getppid()) == number:
            time.sleep(1.0)
        os._exit(LOST_RANK)

    if number is not None:
        threading.Thread(target=watch, daemon=True).start()
