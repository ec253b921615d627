"""Point clouds, encoded by neighbourhoods."""

from __future__ import annotations

from vilavt_components.encoders.point_cloud.encoder import PointCloudEncoder

__all__ = ["PointCloudEncoder"]
