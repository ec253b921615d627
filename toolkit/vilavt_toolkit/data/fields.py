"""The fields of a row, read by type; what is wrong is collected, so that all of it is told at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


class Fields:
    """A row whose fields are asked for one by one; `problems` are (field, what is wrong and what to do)."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.problems: list[tuple[str, str]] = []

    def complain(self, field: str, what: str) -> None:
        """Note what is wrong with a field."""
        self.problems.append((field, what))

    def given(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self.row.get(key) is not None

    def text(self, key: str, required: bool = True) -> str:
        """A field that is text; with `required` not blank."""
        value = self.row.get(key)
        if value is None and not required:
            return ""
        if value is None:
            self.complain(key, "is missing; add it.")
            return ""
        return self.checked_text(key, value, required)

    def checked_text(self, field: str, value: Any, required: bool = True) -> str:
        """`value` where it is text that can be encoded, else "" with a complaint under `field`."""
        if not isinstance(value, str):
            self.complain(field, f"is {shown(value)}; it must be text.")
        elif required and not value.strip():
            self.complain(field, "is empty; write it or remove the sample.")
        elif not value.isascii() and (wrong := _unencodable(value)) is not None:
            self.complain(field, f"holds half a surrogate pair at character {wrong}; remove it.")
        else:
            return value
        return ""

    def plain(self, key: str) -> str:
        """A field that is text, or a number or truth value taken as text; not blank."""
        value = self.row.get(key)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float):
            return str(value)
        return self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A field that is a list of texts, or one text alone; () where it is missing or null."""
        value = self.row.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        names = [f"{key}[{number}]" if isinstance(value, list) else key for number in range(len(items))]
        return tuple(self.checked_text(name, item) for name, item in zip(names, items, strict=True))

    def whole(self, key: str, minimum: int) -> int | None:
        """A field that is a whole number of at least `minimum`; None where it is missing or null."""
        value = self.row.get(key)
        if value is None or self._is_whole(key, value, minimum):
            return value
        return None

    def wholes(self, key: str) -> tuple[int, ...]:
        """A field that is a list of whole numbers from 0; () where it is missing or null."""
        value = self.row.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.complain(key, f"is {shown(value)}; it must be a list of whole numbers.")
            return ()
        right = [self._is_whole(f"{key}[{number}]", item, 0) for number, item in enumerate(value)]
        return tuple(value) if all(right) else ()

    def name(self, key: str) -> str:
        """A field that names the sample: text or a whole number; "" where it is missing or null."""
        value = self.row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key, required=False)

    def _is_whole(self, field: str, value: Any, minimum: int) -> bool:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        if not right:
            self.complain(field, f"is {shown(value)}; it must be a whole number from {minimum}.")
        return right


def digest(*parts: object) -> str:
    """Sixteen hexadecimal figures that tell these parts from others."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def shown(value: Any) -> str:
    """A value, short enough for a sentence."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _unencodable(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


_BOM = b"\xef\xbb\xbf"


class BadRow(Exception):
    """Why a row cannot be read, and what to do."""


def parse_json(data: bytes) -> Any:
    """One JSON value; raises BadRow with what is wrong."""
    try:
        return json.loads(_text(data))
    except json.JSONDecodeError as error:
        raise BadRow(f"is no valid JSON ({error.msg}, column {error.colno}); mend or remove it.") from None
    except RecursionError:
        raise BadRow("is nested too deep to be a sample; mend or remove it.") from None


def _text(data: bytes) -> str:
    try:
        return data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"is no UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
