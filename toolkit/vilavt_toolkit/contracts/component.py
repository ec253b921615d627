"""The base of every component, and the coordinate types that all kinds share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

Box = tuple[float, ...]
"""A box in the coordinates of its source; only the source reads its numbers."""


class Component:
    """Base of every component: it names settings of small instances, on which the contract tests run."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Any:
        """Return settings that build a small instance in milliseconds, with nothing downloaded."""

    @classmethod
    def variants(cls) -> Mapping[str, Any]:
        """Return settings of further small instances to test, by name: one for each inner structure it can have."""
        return {}
