"""Tasks whose samples lie in data files; read `conversations.py` and `conversation_rows.py`, then `questions.py`."""

from __future__ import annotations

from vilavt_components.tasks.files.benchmark import VilavtBenchmark
from vilavt_components.tasks.files.conversations import Conversations
from vilavt_components.tasks.files.rl import VilavtRL

__all__ = ["Conversations", "VilavtBenchmark", "VilavtRL"]
