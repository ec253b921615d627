"""Equality of mathematical answers: numbers exactly, other expressions by the library math-verify.

The library runs in a process of its own (`math_worker.py`), which can be ended when a comparison takes too long.
"""

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

from vilavt_components.common.answers.reading import is_same_number, is_same_text, normalise_text, read_number
from vilavt_toolkit.errors import InputError

logger = logging.getLogger(__name__)

_MAX_LENGTH = 300
"""A longer expression is not compared, so that parsing takes milliseconds."""
_SECONDS = 3
"""CPU time that a comparison may take; computing 9^(9^9) would take forever."""
_WAIT = 50.0
"""Seconds by the clock after which a comparison is ended in any case."""
_START = 300.0
"""Seconds to wait for the process to import the library."""
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

_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;:! ]|~|[\u2009\u202f\u00a0 ])(?=[0-9]{3}(?![0-9]))")
"""Marks that LaTeX and printed texts put between thousands, besides a plain comma."""
_DEGREE = re.compile(r" ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ)|\\degree|\u00b0)(?![a-z])")
_DASH = re.compile(r"^[\u2010-\u2014] ?(?=[0-9.\\])")
_CURRENCY = re.compile(r"(?P<sign>[-+]?) ?(?P<currency>\\?\$|\u20ac|\u00a3|\u00a5) ?(?=[-+.0-9])")
_UNITS = frozenset(
    {"nm", "um", "mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi", "ms", "s", "min", "h", "mg", "g", "kg", "lb",
     "oz", "ml", "cl", "l", "mm^2", "cm^2", "m^2", "km^2", "mm^3", "cm^3", "m^3", "m/s", "km/h", "kj", "pa", "kpa"}
)  # fmt: skip
"""Units that differ in what they measure or in size, in small letters."""
_UNIT = re.compile(
    # No letters before it but those of commands: in 3g + 2m they are variables.
    r"(?:[^a-z\\]|\\[a-z]+)*[0-9}] ?(?:\\[,;:! ]|~)? ?"
    r"(?:\\(?:text|mathrm|textrm|mbox) ?\{ ?(?P<framed>[^{}]+?) ?\}|(?P<plain>[a-z/]+))"
    r"(?P<power>\^ ?\{?[23]\}?)?"
)


def is_same_value(truth: str, answer: str) -> bool:
    """Return True if an answer equals the truth as text, as a number, or as an expression of the same value.

    "x = 3" equals 3. An expression that is not worked out yet (a sum of numbers, an integral, a limit) equals nothing,
    unless the truth is one too: else a question would be its own answer. A comparison that takes more than a few
    seconds counts as not equal. Two different units or currencies are never equal,
    and one that is left out is. Raises InputError if the library is missing.
    """
    if is_same_text(truth, answer):
        return True
    wanted, given = _without_names(normalise_text(truth), normalise_text(answer))
    # The library leaves units out, so 5 cm would be 5 m.
    if _has_other_unit(wanted, given):
        return False
    wanted, given = _write_plainly(wanted), _write_plainly(given)
    number, found = read_number(wanted), read_number(given)
    # Two numbers are compared here: the library rounds, and 0.333333 is not 1/3.
    if number is not None and found is not None:
        return is_same_number(number, found)
    if not wanted or not _is_whole(given) or len(_RELATION.findall(wanted)) != len(_RELATION.findall(given)):
        return False
    if (number is not None and _is_sum(given)) or (_TASK.search(given) and not _TASK.search(wanted)):
        return False
    return max(len(wanted), len(given)) <= _MAX_LENGTH and _are_equal(wanted, given)


def _without_names(truth: str, answer: str) -> tuple[str, str]:
    """Return both without the "x =" of one of them, if the other has none."""
    named = [_NAMED.fullmatch(text) for text in (truth, answer)]
    if bool(named[0]) == bool(named[1]):
        return truth, answer
    first, second = (text if name is None else name["value"] for text, name in zip((truth, answer), named, strict=True))
    return first, second


def _write_plainly(text: str) -> str:
    """Return a text without what is written around a number only: grouped thousands, degrees, a currency, a dash."""
    text = _DEGREE.sub("^\\\\circ", _DASH.sub("-", _GROUPED.sub("", text)))
    return _CURRENCY.sub(r"\g<sign>", text, count=1) if _CURRENCY.match(text) else text


def _has_other_unit(truth: str, answer: str) -> bool:
    """Return True if both name a currency or a common unit, and not the same one."""
    currencies = [match["currency"].lstrip("\\") for text in (truth, answer) if (match := _CURRENCY.match(text))]
    units = {unit for text in (truth, answer) if (unit := _find_unit(text))}
    return len(set(currencies)) > 1 or len(units) > 1


def _find_unit(text: str) -> str | None:
    """Return the common unit behind a number, None if there is none; other words may be variables."""
    match = _UNIT.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        return None
    unit = (match["framed"] or match["plain"]) + re.sub(r"[ {}]", "", match["power"] or "")
    return unit if unit in _UNITS else None


def _is_whole(text: str) -> bool:
    """Return True if it is one formula: all braces closed, and no frame inside.

    The library would pick one of several frames, so an answer with two would be two guesses.
    """
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return bool(text) and not depth and not _FRAME.search(text)


def _is_sum(text: str) -> bool:
    """Return True if it is made of numbers that are still to be computed; a power such as 3 x 10^8 is not."""
    return bool(_PLAIN.fullmatch(_OPERATOR.sub(" ", text))) and not _POWER.fullmatch(text)


@lru_cache(maxsize=4096)
def _are_equal(truth: str, answer: str) -> bool:
    return _worker_of_process(os.getpid()).are_equal(truth, answer)


@lru_cache(maxsize=1)
def _worker_of_process(process: int) -> _Worker:
    """Return the worker of this process.

    `process` is the cache's key: a forked process gets a worker of its own, since two must not share one's pipes.
    """
    worker = _Worker()
    atexit.register(worker.stop)
    return worker


class _Worker:
    """A process that compares: started on first use, and again after one had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._process: subprocess.Popen[str] | None = None

    def are_equal(self, truth: str, answer: str) -> bool:
        """Return True if both are equal, False if they differ or comparing takes too long."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start_worker_process()
            # No answer: the system ended the process at its limit of CPU time, or `_exchange_lines` did by the clock.
            reply = _exchange_lines(self._process, json.dumps([truth, answer, _SECONDS]), _WAIT)
            if not reply:
                self._end_held_process()
                logger.warning("comparing %r with %r takes too long. It counts as wrong.", answer, truth)
        return reply == "true"

    def stop(self) -> None:
        """End the process; the next comparison starts a new one."""
        # A forked process has this registered for its own end, too, and must not end what its parent still uses.
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._end_held_process()

    def _end_held_process(self) -> None:
        if self._process is not None:
            _end_process(self._process)
            self._process = None


def _start_worker_process() -> subprocess.Popen[str]:
    # -P: the folder of the file stays off the import path, since `math.py` in it would hide the standard library's.
    process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        # A signal to the group of this process, as a terminal or SLURM sends it, would end a comparison as wrong.
        start_new_session=True,
    )
    reply = _exchange_lines(process, "", _START)
    if reply != "true":
        _end_process(process)
        reason = json.loads(reply) if reply else "its process ended at once"
        raise InputError(
            f"answers of kind math need the library math-verify ({reason}). Run `pip install math-verify`."
        )
    return process


def _end_process(process: subprocess.Popen[str]) -> None:
    process.kill()
    # Closing the input flushes its buffer, into a pipe that nobody reads any more.
    with suppress(BrokenPipeError):
        process.communicate()


def _exchange_lines(process: subprocess.Popen[str], line: str, seconds: float) -> str:
    """Write a line, if there is one, and return the line that comes back; empty if the process ends first."""
    assert process.stdin is not None and process.stdout is not None
    # A timer that kills the process, since `readline` has no timeout: the closed pipe then ends the reading.
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
