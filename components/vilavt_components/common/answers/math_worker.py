"""The process that compares mathematical expressions: JSON lines in, JSON lines out.

It runs as a file of its own, so that it loads only the library, neither torch nor the toolkit. A comparison may take
forever, and inside one operation on large integers no Python signal handler or thread runs. Only the system can end it,
which it is asked to do once a comparison has used up its CPU time.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress

_MEMORY = 4 << 30
"""Limit of its address space in bytes, so that huge integers fail instead of filling the machine."""


def _limit_cpu_time(seconds: int) -> None:
    """Let the system end this process after so many more seconds of CPU time, if the system can."""
    with suppress(ImportError):
        import resource

        hard_limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
        # The limit counts from the start of the process, so it is moved on before every comparison.
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard_limit))


def _limit_memory() -> None:
    # Some systems have no such limit, or have set a lower one.
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _load_comparison() -> Callable[[str, str], bool]:
    """Return the comparison of two formulas, without the library's own timeouts.

    Those are signals, which an operation on large integers does not notice.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    whole = [LatexExtractionConfig(boxed_match_priority=-1)]

    def equal(truth: str, answer: str) -> bool:
        # Framed as one formula from the first to the last letter, so that the library picks nothing out of the text.
        read = [parse(f"${t}$", whole, fallback_mode="no_fallback", parsing_timeout=None) for t in (truth, answer)]
        return bool(verify(*read, timeout_seconds=None))

    return equal


def main() -> None:
    """Answer every line [truth, answer, seconds] with `true` or `false`, until the input ends."""
    # A line that a library prints to the output would be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    _limit_memory()
    try:
        equal = _load_comparison()
    except ImportError as error:
        answers.write(json.dumps(str(error)) + "\n")
        return
    answers.write("true\n")
    answers.flush()
    for line in sys.stdin:
        truth, answer, seconds = json.loads(line)
        _limit_cpu_time(seconds)
        answers.write(json.dumps(equal(truth, answer)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
