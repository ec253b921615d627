"""The assembled model: from a checked recipe to modules, and its batches."""
