"""Generated point clouds of shapes with marks; read `task.py` first, then `layout.py` and `points.py`."""

from __future__ import annotations

from vilavt_components.tasks.shape_clouds.task import ShapeClouds

__all__ = ["ShapeClouds"]
