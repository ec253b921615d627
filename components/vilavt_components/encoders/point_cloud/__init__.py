"""Encoder `point_cloud`: neighbourhoods of points as tokens of a plain vision transformer. Read `encoder.py` first.

`sampling.py` chooses centres and neighbourhoods in data workers; `pointnet.py` makes a token of each.
"""

from __future__ import annotations

from vilavt_components.encoders.point_cloud.encoder import PointCloudEncoder

__all__ = ["PointCloudEncoder"]
