"""Tasks whose samples lie in data files; read `conversations.py` and `conversation_rows.py`, then `questions.py`."""

from __future__ import annotations

from vilavt_components.tasks.files.benchmark import VilavtBenchmark
from vilavt_components.tasks.files.conversations import Conversations
from vilavt_components.tasks.files.question_rows import Questions
from vilavt_components.tasks.files.rl import VilavtRL
from vilavt_components.tasks.files.trace_rows import Traces

__all__ = ["Conversations", "Questions", "Traces", "VilavtBenchmark", "VilavtRL"]
