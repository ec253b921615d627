"""Checkpoint formats of other projects: the contract, and finding the format of a folder."""

from __future__ import annotations

from vilavt_toolkit.formats.format import CheckpointFormat

__all__ = ["CheckpointFormat"]
