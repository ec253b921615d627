"""The program `vilavt`: the command line with a process of its own."""

from __future__ import annotations

import logging
import os
import sys

from vilavt_toolkit.cli import app
from vilavt_toolkit.errors import BROKEN_PIPE, RunError
from vilavt_toolkit.utils.streams import guarded_streams
from vilavt_toolkit.utils.text import PlainFormatter


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 usage error, 130 interrupted, 143 terminated.

    141 where nobody reads the output to its end, as for `vilavt list | head`.
    """
    # OpenMP threads that spin long while they wait slow training down on shared cores. Threads that never spin slow it
    # down on idle ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # huggingface_hub warns twice about every attempt to reach the hub. Our error says the outcome in one sentence.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with guarded_streams() as output:
        # The handler keeps the stream that is standard error now.
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        code = app.run(sys.argv[1:] if arguments is None else arguments)
    if output.failure is not None and code == 0:
        code = _report_lost_output(output.failure)
    sys.exit(code)


def _report_lost_output(failure: OSError) -> int:
    """Say that output was lost, unless whoever read it had enough, and return the exit code."""
    if isinstance(failure, BrokenPipeError):
        return BROKEN_PIPE
    error = RunError(f"standard output cannot be written ({failure.strerror}). Make room, or send it elsewhere.")
    return app.print_failure(error.report(), error.exit_code)
