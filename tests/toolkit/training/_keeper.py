"""Run in a process of its own: imports once, then forks a process for every attempt at a run, as it is asked to.

Reads a request a line on stdin, JSON of the name of a function of `REQUESTS` and its arguments, and answers each by a
line of JSON: what the function returned, and what the attempts wrote on stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Signalled = tuple[int, int | None]
"""Exit code of an attempt, and the newest step that it had saved."""


def start_attempt(arguments: list[str]) -> int:
    """Fork a process, the first of a group, that runs `vilavt` with these arguments."""
    child = os.fork()
    if child == 0:
        os.setsid()
        # Answers alone go there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            from vilavt_toolkit.cli import app

            code = app.run(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def find_newest_step(run: str) -> int | None:
    folder = Path(run, "checkpoints")
    names = [path.name for path in folder.iterdir() if path.name.startswith("step-")] if folder.is_dir() else []
    return int(max(names)[5:]) if names else None


def send_signal(arguments: list[str], run: str, when: tuple[int, float], number: int) -> Signalled:
    """Send a signal to all processes of a run some seconds after a step of it; step 0 is its start."""
    step, delay = when
    child, code, until = start_attempt(arguments), None, time.monotonic() + 120
    while not _has_come_to(run, step) and code is None and time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        code = None if pid == 0 else os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if code is None:
        time.sleep(delay)
        os.killpg(child, number)
        code = _wait(child)
    return code, find_newest_step(run)


def _has_come_to(run: str, step: int) -> bool:
    return Path(run, "versions.json").exists() if step == 0 else (find_newest_step(run) or 0) >= step


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(
    arguments: list[str], run: str, moments: list[tuple[int, float]], whole: list[str]
) -> tuple[list[Signalled], int, int]:
    """Kill a run at some moments and resume it after each, to its end; the codes of that and of a run left alone."""
    told = []
    for moment in moments:
        resume = ["--resume"] if find_newest_step(run) is not None else []
        told.append(send_signal([*arguments, *resume], run, moment, signal.SIGKILL))
    return told, _wait(start_attempt([*arguments, "--resume"])), _wait(start_attempt(whole))


REQUESTS: dict[str, Callable[..., Any]] = {"send_signal": send_signal, "kill": kill}


def answer_requests() -> None:
    # Attempts write where stderr of this process leads, which is a file for each request.
    own = os.dup(2)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            found = REQUESTS[name](*arguments)
            os.dup2(own, 2)
            file.seek(0)
            print(json.dumps([found, file.read().decode()]), flush=True)


if __name__ == "__main__":
    import tensorboard  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from vilavt_toolkit.registry.plugins import load_builtin
    from vilavt_toolkit.training.reinforcement import run as rl_run  # noqa: F401
    from vilavt_toolkit.training.supervised import run  # noqa: F401

    torch.set_num_threads(1)
    load_builtin()
    answer_requests()
