"""Registries as they were before: tests that register components or load plugins leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vilavt_toolkit.registry import REGISTRIES, loaded_plugins


@contextmanager
def isolated_registries() -> Iterator[None]:
    """Undo on leaving whatever components were registered and plugins loaded inside."""
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    plugins = set(loaded_plugins)
    try:
        yield
    finally:
        for kind, registry in REGISTRIES.items():
            registry.restore(before[kind])
        # A plugin whose components are gone must be importable again, and Python would return the cached module.
        for module in loaded_plugins - plugins:
            sys.modules.pop(module, None)
        loaded_plugins.intersection_update(plugins)
