"""Point clouds, from files or memory; read `source.py` first, then `files.py` for the formats."""

from __future__ import annotations

from vilavt_components.sources.point_cloud.source import PointCloudSource

__all__ = ["PointCloudSource"]
