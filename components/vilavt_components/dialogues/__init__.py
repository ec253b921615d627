"""Dialogues: prompts, and how a turn is written."""
