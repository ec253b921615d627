"""Numbers of NumPy and torch as Python's own."""

from __future__ import annotations

from typing import Any


def plain_scalar(value: Any) -> Any:
    """Return a NumPy number or a tensor of one number as Python's own number; any other value as it is.

    Python's own can be written as JSON, do not overflow, and are what libraries ask for.
    """
    is_scalar = getattr(value, "shape", None) == () and callable(getattr(value, "item", None))
    return value.item() if is_scalar else value
