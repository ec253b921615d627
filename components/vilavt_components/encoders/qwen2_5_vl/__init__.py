"""The vision tower of Qwen2.5-VL, ViLaVT's own."""

from __future__ import annotations

from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLEncoder

__all__ = ["Qwen25VLEncoder"]
