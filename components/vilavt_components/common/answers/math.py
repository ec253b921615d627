"""Whether two mathematical answers are equal: numbers exactly, other expressions by the library math-verify."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from vilavt_components.common.answers.reading import normalised, read_number, same_number, same_text
from vilavt_toolkit.errors import InputError

logger = logging.getLogger(__name__)

_LONGEST = 300
"""No expression is longer, so that reading one takes milliseconds."""
_SECONDS = 3
"""Of its own time, that a comparison may take; working out 9^(9^9) takes more than anyone has."""
_WAIT = 50.0
"""Seconds by the clock after which it is given up in any case."""
_START = 300.0
_WORKER = Path(__file__).with_name("math_worker.py")

_NAMED = re.compile(r"\\?[a-z]+(?:_\{?[a-z0-9]+\}?)?(?:\([a-z]\))? ?= ?(?P<value>[^=]+)")
_RELATION = re.compile(r"[=<>\u2260\u2264\u2265]|\\(?:leq?|geq?|neq?|lt|gt|approx|sim|equiv)(?![a-z])")
_TASK = re.compile(r"\\(?:sum|prod|int|iint|oint|lim)(?![a-z])")
_FRAME = re.compile(r"\$|\\boxed|\\\[|\\\(")
_PLAIN = re.compile(r"[-+*/^!()\[\]{}0-9., \u00d7\u00f7\u00b7]+")
_OPERATOR = re.compile(r"\\(?:[dt]?frac|times|cdot|div|left|right)(?![a-z])")
_DECIMAL = r"\d+(?:\.\d+)?"
_POWER = re.compile(
    rf"-?(?:{_DECIMAL} ?(?:\\times|\\cdot|\*|\u00d7|\u00b7) ?)?{_DECIMAL} ?(?:\^|\*\*) ?(?:\d|\{{ ?-?\d+ ?\}}|-?\d+)"
)


def same_value(truth: str, answer: str) -> bool:
    """Whether an answer is the truth: as text, as a number, or as an expression that is always equal to it.

    "x = 3" is 3. What is still to be worked out is not its value: a sum of numbers, an integral, a limit, unless the
    truth is one too. What takes more than a few seconds to compare is not equal. Raises InputError without the library.
    """
    if same_text(truth, answer):
        return True
    wanted, given = _without_names(normalised(truth), normalised(answer))
    number, found = read_number(wanted), read_number(given)
    if number is not None and found is not None:
        return same_number(number, found)
    if not wanted or not _is_whole(given) or len(_RELATION.findall(wanted)) != len(_RELATION.findall(given)):
        return False
    if (number is not None and _is_sum(given)) or (_TASK.search(given) and not _TASK.search(wanted)):
        return False
    return max(len(wanted), len(given)) <= _LONGEST and _equal(wanted, given)


def _without_names(truth: str, answer: str) -> tuple[str, str]:
    """Both without the "x =" before one of them, where the other has none."""
    named = [_NAMED.fullmatch(text) for text in (truth, answer)]
    if bool(named[0]) == bool(named[1]):
        return truth, answer
    first, second = (text if name is None else name["value"] for text, name in zip((truth, answer), named, strict=True))
    return first, second


def _is_whole(text: str) -> bool:
    """Whether it is one formula: no frames inside, of which one could be picked, and all braces closed."""
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return bool(text) and not depth and not _FRAME.search(text)


def _is_sum(text: str) -> bool:
    """Whether it is made of numbers that are still to be put together; a power, 3 x 10^8, is not."""
    return bool(_PLAIN.fullmatch(_OPERATOR.sub(" ", text))) and not _POWER.fullmatch(text)


@lru_cache(maxsize=4096)
def _equal(truth: str, answer: str) -> bool:
    return _worker(os.getpid()).equal(truth, answer)


@lru_cache(maxsize=1)
def _worker(process: int) -> _Worker:
    """The worker of this process: one that was forked off may not share its parent's pipes."""
    worker = _Worker()
    atexit.register(worker.stop)
    return worker


class _Worker:
    """A process that compares, started when first asked, and again after one had to be given up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, truth: str, answer: str) -> bool:
        """Whether both are equal; False where that takes too long."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _started()
            said = _exchange(self._process, json.dumps([truth, answer, _SECONDS]), _WAIT)
            if not said:
                self._end()
                logger.warning("comparing %r with %r takes too long; it counts as wrong.", answer, truth)
        return said == "true"

    def stop(self) -> None:
        """End the process; it is started again when it is needed."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            _ended(self._process)
            self._process = None


def _started() -> subprocess.Popen[str]:
    # -P: the folder of the file is no place to import from; modules there have names like `format`.
    process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    said = _exchange(process, "", _START)
    if said != "true":
        _ended(process)
        why = json.loads(said) if said else "its process ended at once"
        raise InputError(f"answers of kind math need the library math-verify ({why}); pip install math-verify.")
    return process


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    # Closing the input writes what is still in its buffer, which nobody reads any more.
    with suppress(BrokenPipeError):
        process.communicate()


def _exchange(process: subprocess.Popen[str], line: str, seconds: float) -> str:
    """Write a line, if there is one, and read what comes back; empty where the process ends first, or is ended."""
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        if line:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip()
    except BrokenPipeError:
        return ""
    finally:
        timer.cancel()
