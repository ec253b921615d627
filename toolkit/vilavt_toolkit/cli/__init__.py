"""The command line; `main` is the program `vilavt`."""

from __future__ import annotations

from vilavt_toolkit.cli.app import main, run

__all__ = ["main", "run"]
