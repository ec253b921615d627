"""Videos, shown as frames."""

from __future__ import annotations

from vilavt_components.sources.video.source import VideoSource

__all__ = ["VideoSource"]
