"""Published corpora as tasks."""

from __future__ import annotations

from vilavt_components.tasks.published.easy_vqa import EasyVQA
from vilavt_components.tasks.published.nlvr import NLVR

__all__ = ["NLVR", "EasyVQA"]
