"""Shared code of tasks whose samples are generated from a seed; no task is registered here. Read `task.py` first."""
