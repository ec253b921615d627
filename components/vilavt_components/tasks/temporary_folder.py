"""A temporary folder for the made-up files that `tiny` settings of tasks point to."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def make_temporary_folder() -> Path:
    """Make a folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="vilavt-tiny-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
