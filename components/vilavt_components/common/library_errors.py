"""The exceptions of libraries that build a model from a recipe's own settings, turned into one BadConfig."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.utils.text import shorten_text

LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that timm, open_clip and torch raise for settings that make no model: they fail where it shows."""


@contextmanager
def as_bad_config(what: str, advice: str) -> Iterator[None]:
    """Turn exceptions inside into a BadConfig: `what` (the library's reason), then `advice`."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadConfig(f"{what} ({shorten_text(reason)}). {advice}") from error
