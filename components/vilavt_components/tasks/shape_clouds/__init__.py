"""Generated point clouds of marked shapes."""

from __future__ import annotations

from vilavt_components.tasks.shape_clouds.task import ShapeClouds

__all__ = ["ShapeClouds"]
