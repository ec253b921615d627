"""Saving and loading: run folders, native checkpoints, exports, checkpoints of others."""
