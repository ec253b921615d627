"""The command line; `main` is the program `vilavt`."""

from __future__ import annotations

from vilavt_toolkit.cli.app import run
from vilavt_toolkit.cli.program import main

__all__ = ["main", "run"]
