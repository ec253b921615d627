"""Format `vilavt`: the paper's checkpoints, and those of Qwen2.5-VL. Read `format.py` first."""

from __future__ import annotations

from vilavt_components.formats.vilavt.format import VilavtFormat

__all__ = ["VilavtFormat"]
