"""The memory of this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def measure_host_memory() -> int:
    """Return the bytes of memory of this machine, or of the container; 0 where the system does not say."""
    names: Any = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 0
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # The file says `max` where there is no limit.
    with suppress(OSError, ValueError):
        found = min(found, int(_CONTAINER_LIMIT.read_text(encoding="ascii")))
    return found
