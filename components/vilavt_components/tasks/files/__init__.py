"""Tasks whose samples lie in files: dialogues, reinforcement prompts, benchmark tables."""

from __future__ import annotations

from vilavt_components.tasks.files.benchmark import VilavtBenchmark
from vilavt_components.tasks.files.conversations import Conversations
from vilavt_components.tasks.files.rl import VilavtRL

__all__ = ["Conversations", "VilavtBenchmark", "VilavtRL"]
