"""The folder of files that can be made again, and so may be deleted at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "VILAVT_CACHE_HOME"
"""The environment variable that names another folder."""


def cache_folder() -> Path | None:
    """Return this user's folder of files that can be made again; it may not exist. None if the user has no home."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = Path(os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", ""))
    # A relative folder counts as unset, as the XDG specification says.
    if base.is_absolute():
        return base / "vilavt"
    try:
        return Path.home() / ".cache" / "vilavt"
    except RuntimeError:
        return None
