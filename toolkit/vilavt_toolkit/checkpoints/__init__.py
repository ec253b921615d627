"""Checkpoints and models on disk: run folders, our format, loading and exporting."""
