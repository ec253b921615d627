"""Videos, shown as frames; read `source.py` first, then `frames.py` and `decoding.py` for where frames come from."""

from __future__ import annotations

from vilavt_components.sources.video.source import VideoSource

__all__ = ["VideoSource"]
