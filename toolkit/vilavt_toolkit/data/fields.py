"""The fields of a row, read by type. Problems are collected, so that the user sees all of them at once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from vilavt_toolkit.utils.json_objects import RepeatedKey, load_unambiguous
from vilavt_toolkit.utils.text import format_value, shorten_text

_NEAR = 0.75
"""Likeness of two names, as difflib measures it, from which one is a misspelling of the other."""
_MOST_DIGITS = 4300
"""Digits of the longest whole number that Python reads and writes."""
_LARGEST = 2**53
"""Largest whole number that a float holds exactly; no count and no coordinate of a row is larger."""
UTF8_BOM = b"\xef\xbb\xbf"
"""Bytes that Windows editors put before UTF-8 text; JSON does not allow them."""

LONE_CR = "ends with a carriage return alone, as old Macintosh programs wrote lines."
SAVE_WITH_LF = "Save the file with line feeds (LF or CR LF)."
"""The problem of a line and its remedy, where rows are not told apart by line feeds."""


class BadRow(Exception):
    """A row or an original that cannot be read; the message says why and what to do."""


class Fields:
    """Holds a row and reads its fields one by one; `problems` are pairs (field, what is wrong and what to do)."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.problems: list[tuple[str, str]] = []

    def add_problem(self, field: str, what: str) -> None:
        """Note what is wrong with a field."""
        self.problems.append((field, what))

    def add_problems(self, problems: Sequence[tuple[str, str]], prefix: str) -> None:
        """Note the problems of an object inside the row, whose fields' names begin with `prefix`."""
        self.problems += [(f"{prefix}{field}", what) for field, what in problems]

    def replace_value(self, key: str, value: Any) -> Fields:
        """Return the row with another value in one field, and the same list of problems."""
        other = Fields({**self.row, key: value})
        other.problems = self.problems
        return other

    def has_value(self, key: str) -> bool:
        """Return True if a field is there and not null."""
        return self.row.get(key) is not None

    def read_text(self, key: str, required: bool = True) -> str:
        """Read a text field; "" if it is missing. With `required` it may be neither missing nor blank."""
        value = self.row.get(key)
        if value is None and not required:
            return ""
        if value is None:
            self.add_problem(key, "is missing. Add it.")
            return ""
        return self.check_text(key, value, required)

    def check_text(self, field: str, value: Any, required: bool = True) -> str:
        """Return `value` if it is text that can be encoded; else note a problem under `field` and return ""."""
        if not isinstance(value, str):
            self.add_problem(field, f"is {format_value(value)}. It must be text.")
        elif required and not value.strip():
            self.add_problem(field, "is empty. Write it or remove the sample.")
        # JSON may escape half a surrogate pair (\ud83d). Python takes it as text, and tokenizers fail on it much later.
        # `isascii` is a flag of the string: almost all texts need no trial encoding.
        elif not value.isascii() and (wrong := _find_unencodable(value)) is not None:
            self.add_problem(field, f"holds half a surrogate pair at character {wrong}. Remove that character.")
        else:
            return value
        return ""

    def read_plain_text(self, key: str) -> str:
        """Read a field that must not be blank as text; numbers are written out, true and false become yes and no."""
        value = self.row.get(key)
        # bool first: it is an int in Python.
        if isinstance(value, bool):
            return "yes" if value else "no"
        # Tables have decimals too. NaN is how they often write that a value is missing.
        if isinstance(value, int | float | Decimal):
            if isinstance(value, int) or math.isfinite(value):
                return str(value)
            self.add_problem(key, f"is {value}. Write a number or a text, or remove the sample.")
            return ""
        return self.read_text(key)

    def read_texts(self, key: str) -> tuple[str, ...]:
        """Read a list of texts, or one text alone; () if it is missing or null."""
        value = self.row.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        names = [f"{key}[{number}]" if isinstance(value, list) else key for number in range(len(items))]
        return tuple(self.check_text(name, item) for name, item in zip(names, items, strict=True))

    def read_int(self, key: str, minimum: int) -> int | None:
        """Read a whole number of at least `minimum`; None if it is missing or null."""
        value = self.row.get(key)
        if value is None or self._is_int(key, value, minimum):
            return value
        return None

    def read_flag(self, key: str, default: bool) -> bool:
        """Read true or false; `default` if it is missing or null."""
        value = self.row.get(key)
        if value is not None and not isinstance(value, bool):
            self.add_problem(key, f"is {format_value(value)}. It must be true or false.")
        return value if isinstance(value, bool) else default

    def find_unknown(self, known: Collection[str]) -> list[str]:
        """Return the fields that are not `known`; one that is nearly the name of a missing known one is a problem."""
        unknown = [str(key) for key in self.row if key not in known]
        present = tuple(key for key in known if self.row.get(key) is not None) if unknown else ()
        for key in tuple(unknown):
            near = _find_misspelt(key, tuple(known), present)
            if near is not None:
                self.add_problem(key, f"is no field of this format. Did you mean '{near}'? Rename it.")
                unknown.remove(key)
        return unknown

    def read_ints(self, key: str) -> tuple[int, ...]:
        """Read a list of whole numbers from 0; () if it is missing or null."""
        value = self.row.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.add_problem(key, f"is {format_value(value)}. It must be a list of whole numbers.")
            return ()
        # A list first: `all` over a generator would stop at the first wrong number and name only that one.
        are_right = [self._is_int(f"{key}[{number}]", item, 0) for number, item in enumerate(value)]
        return tuple(value) if all(are_right) else ()

    def read_name(self, key: str) -> str:
        """Read the name of the sample, text or a whole number; "" if it is missing or null."""
        value = self.row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.read_text(key, required=False)

    def _is_int(self, field: str, value: Any, minimum: int) -> bool:
        is_right = isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= _LARGEST
        if not is_right:
            self.add_problem(field, f"is {format_value(value)}. It must be a whole number from {minimum}.")
        return is_right


def is_finite_number(value: Any) -> bool:
    """Return True for a number that is neither infinite, NaN, nor a truth value, and no larger than any coordinate."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


# Files have millions of rows with the same few fields.
@lru_cache(maxsize=1024)
def _find_misspelt(name: str, known: tuple[str, ...], present: tuple[str, ...]) -> str | None:
    """Return the known name that a field is most likely meant as, or None; `present` are those that the row has."""
    # Names of three letters are near to too many others. And what a row has needs no second name: `image_ids` beside
    # `image` is no misspelling of `images`.
    missing = [each for each in known if not get_close_matches(each, present, 1, _NEAR)] if len(name) > 3 else []
    close = get_close_matches(name.lower(), missing, 1, _NEAR)
    return close[0] if close else None


def hash_parts(*parts: object) -> str:
    """Return 16 hexadecimal digits that depend on every part and its place.

    Not `hash`, which differs from process to process: splits and groups must be the same in every run.
    """
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def parse_json(data: bytes) -> Any:
    """Parse one JSON value from UTF-8 bytes; raises BadRow with what is wrong."""
    text = decode_utf8(data)
    try:
        return load_unambiguous(text)
    except RepeatedKey as error:
        raise BadRow(tell_repeated_key(error)) from None
    except json.JSONDecodeError as error:
        # Rows that are told apart by a carriage return alone reach here as one line.
        if error.msg == "Extra data" and text[: error.pos].endswith("\r"):
            raise BadRow(f"{LONE_CR} {SAVE_WITH_LF}") from None
        raise BadRow(f"is no valid JSON ({error.msg}, column {error.colno}). Correct or remove the row.") from None
    except RecursionError:
        raise BadRow("is nested too deep to be a sample. Correct or remove the row.") from None
    except ValueError:
        raise BadRow(f"{locate_long_number(text)}. Write it as text, or remove the row.") from None


def tell_repeated_key(error: RepeatedKey) -> str:
    """Say which key stands twice in one object, and what to do; the subject is the row or a field."""
    return f"has the key '{shorten_text(error.key, 60)}' twice in one object. Keep one of both."


def locate_long_number(text: str) -> str:
    """Say where a JSON text has a number with more digits than Python reads: `id is a number of 5,000 digits`."""
    found = json.loads(text, parse_int=lambda digits: _LongNumber(digits) if len(digits) > _MOST_DIGITS else 0)
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, _LongNumber):
            return f"{where.removeprefix('.')} is a number of {len(value):,} digits".strip()
        if isinstance(value, dict):
            waiting += [(f"{where}.{key[:40]}", item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{where}[{number}]", item) for number, item in enumerate(value)]
    return "holds a number of too many digits"


class _LongNumber(str):
    """The digits of a whole number that is too long to be read."""


def decode_utf8(data: bytes) -> str:
    """Decode UTF-8 bytes, with or without a byte order mark; raises BadRow."""
    try:
        return data.removeprefix(UTF8_BOM).decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"is no UTF-8 text (byte {error.start}). Convert the file to UTF-8.") from None


def _find_unencodable(text: str) -> int | None:
    """Return the index of the first character that UTF-8 cannot hold, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
