"""The process that compares mathematical expressions: JSON lines in, JSON lines out.

Run as a file of its own, so that it loads nothing but the library: neither torch nor the toolkit. What it is asked may
take for ever, and inside one operation on whole numbers no signal handler or thread is reached: only the system can end
it, which it is told to do once a comparison has used up its time.
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
"""Bytes that whole numbers may grow to."""


def _limited(seconds: int) -> None:
    """Have the system end this process after so many more seconds of its own time, where it can."""
    with suppress(ImportError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, most))


def _bounded() -> None:
    # Some systems know of no such limit, or have set a lower one.
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _comparison() -> Callable[[str, str], bool]:
    """The comparison of two formulas, with the library's own timeouts, which are signals, switched off."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    whole = [LatexExtractionConfig(boxed_match_priority=-1)]

    def equal(truth: str, answer: str) -> bool:
        # Each is one formula from its first to its last letter, so that nothing is picked out of a longer text.
        read = [parse(f"${t}$", whole, fallback_mode="no_fallback", parsing_timeout=None) for t in (truth, answer)]
        return bool(verify(*read, timeout_seconds=None))

    return equal


def main() -> None:
    """Answer every line [truth, answer, seconds] with whether they are equal, until the input ends."""
    # Whatever a library prints must not stand between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    _bounded()
    try:
        equal = _comparison()
    except ImportError as error:
        answers.write(json.dumps(str(error)) + "\n")
        return
    answers.write("true\n")
    answers.flush()
    for line in sys.stdin:
        truth, answer, seconds = json.loads(line)
        _limited(seconds)
        answers.write(json.dumps(equal(truth, answer)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
