"""The fields of a row, read by type. Problems are collected, so that the user sees all of them at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vilavt_toolkit.utils.text import format_value

UTF8_BOM = b"\xef\xbb\xbf"
"""Bytes that Windows editors put before UTF-8 text; JSON does not allow them."""


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
        if isinstance(value, int | float):
            return str(value)
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
        is_right = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        if not is_right:
            self.add_problem(field, f"is {format_value(value)}. It must be a whole number from {minimum}.")
        return is_right


def hash_parts(*parts: object) -> str:
    """Return 16 hexadecimal digits that depend on every part and its place.

    Not `hash`, which differs from process to process: splits and groups must be the same in every run.
    """
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def parse_json(data: bytes) -> Any:
    """Parse one JSON value from UTF-8 bytes; raises BadRow with what is wrong."""
    try:
        return json.loads(decode_utf8(data))
    except json.JSONDecodeError as error:
        raise BadRow(f"is no valid JSON ({error.msg}, column {error.colno}). Correct or remove the row.") from None
    except RecursionError:
        raise BadRow("is nested too deep to be a sample. Correct or remove the row.") from None


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
