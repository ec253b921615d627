"""Dialogues as they grow: sessions, prompts, tool calls, and traces of training data."""
