"""The base of every component, and the coordinate types that all kinds share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

Box = tuple[float, ...]
"""A part of a source in the source's own coordinates; only its source looks inside."""


Grid = tuple[int, ...]
"""Tokens along each axis of a region, (h, w) for images."""


class Component:
    """What every component has: settings of a small instance of itself, which put it under the contract tests."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Any:
        """Return settings that build a small instance in milliseconds, with nothing downloaded."""

    @classmethod
    def variants(cls) -> Mapping[str, Any]:
        """Return settings of further small instances to test, by name: one for each kind of inside it can have."""
        return {}
