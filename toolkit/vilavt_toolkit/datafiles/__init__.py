"""Samples in files: JSON lists, JSON lines and shards, read row by row, checked before they are learned from."""
