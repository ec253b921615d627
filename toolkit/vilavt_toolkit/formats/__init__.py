"""Checkpoint formats of others: the contract, and finding which format a folder is of."""

from __future__ import annotations

from vilavt_toolkit.formats.format import CheckpointFormat

__all__ = ["CheckpointFormat"]
