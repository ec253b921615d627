"""The console of the commands."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_LOG_COLUMNS = 400
"""Width of a line where the output is no terminal."""


def make_console(stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that prints text as it is, its control characters as escapes.

    Into a file or a pipe it does not wrap lines, and tables may be 400 columns wide unless COLUMNS is set.
    """
    from vilavt_toolkit.utils.plain_console import PlainConsole

    # A program that reads along expects one line per record, and no number in a log may be cut short. Rich would
    # otherwise take 80 columns for everything that is no terminal.
    is_log = not (sys.stderr if stderr else sys.stdout).isatty()
    width = _LOG_COLUMNS if is_log and "COLUMNS" not in os.environ else None
    return PlainConsole(stderr=stderr, soft_wrap=is_log, width=width)
