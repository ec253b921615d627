"""Published corpora as tasks; `corpus.py` holds what they share, then read `easy_vqa.py`."""

from __future__ import annotations

from vilavt_components.tasks.published.easy_vqa import EasyVQA
from vilavt_components.tasks.published.nlvr import NLVR

__all__ = ["NLVR", "EasyVQA"]
