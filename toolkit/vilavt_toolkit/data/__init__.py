"""Data files: rows, the originals they name, their check, and the task that reads them."""
