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
from typing import Any

_MEMORY = 4 << 30
"""Limit of its address space in bytes, so that huge integers fail instead of filling the machine."""
_DIGITS = 30
"""Digits to which a number that is not rational is worked out."""
_RELATIVE_ERROR = 1e-6
"""Largest error of such a number, relative to the truth: as many digits as the library asks of numbers around 1."""
_EXACT_DIGITS = 6_000
"""Rational numbers with as many digits before or behind the point are compared exactly, in milliseconds."""


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
        return bool(verify(*read, timeout_seconds=None)) and not _are_far_apart(*(each[:1] for each in read))

    return equal


def _are_far_apart(truth: Any, answer: Any) -> bool:
    """Return True if two expressions of the library, or parts of them at the same place, are different numbers.

    The library compares rounded to six decimals, so that any two very small numbers are equal to it.
    """
    parts = [_list_parts(each) for each in (truth, answer)]
    if parts[0] is not None and parts[1] is not None and len(parts[0]) == len(parts[1]):
        return any(_are_far_apart(*pair) for pair in zip(*parts, strict=True))
    if not (getattr(truth, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    # Also two infinities, the ends of intervals, of which no difference can be taken.
    if truth == answer:
        return False
    wanted, found = truth.evalf(_DIGITS), answer.evalf(_DIGITS)
    if truth.is_rational and answer.is_rational and max(map(_count_digits, (wanted, found))) < _EXACT_DIGITS:
        return bool(truth.doit() != answer.doit())
    if wanted.is_infinite or found.is_infinite:
        return True
    # `not <=` also holds for what has no value.
    return not abs(found - wanted) <= _RELATIVE_ERROR * abs(wanted)


def _count_digits(number: Any) -> float:
    """Return how many digits a number has before or behind its point, about; 0 for zero, infinite without a value."""
    from sympy import Float

    # `Float` holds its exponent of 2, so that a number beyond Python's range can be asked, too.
    if not isinstance(number, Float):
        return 0 if number.is_zero else math.inf
    _, mantissa, exponent, bits = number._mpf_
    return 0.3 * abs(int(exponent) + int(bits)) if mantissa else 0


def _list_parts(value: Any) -> list[Any] | None:
    """Return the elements of a list, tuple, set, matrix, interval or relation; None for a single expression."""
    from sympy import And, FiniteSet, Interval, MatrixBase, Tuple
    from sympy.core.relational import Relational

    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, MatrixBase):
        return list(value)
    # sympy sorts the elements of a set by itself, the same way for equal ones.
    return list(value.args) if isinstance(value, FiniteSet | Tuple | Interval | Relational | And) else None


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
