"""Vision towers of open_clip."""

from __future__ import annotations

from vilavt_components.encoders.open_clip.encoder import OpenClipEncoder

__all__ = ["OpenClipEncoder"]
