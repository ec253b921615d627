"""The state of the git checkout that a run was started in: commit, branch, and which files differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_SECONDS = 10.0
"""Time that git gets. A checkout on a slow network drive may need more, and then its state is not told."""
_MOST_FILES = 50
"""Changed files that are listed."""


def describe_git_state(folder: Path) -> dict[str, Any]:
    """Return commit, branch and changed files of the checkout around `folder`; empty outside of one, or without git."""
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    # `--porcelain` is the form that git promises not to change.
    changed = _ask_git(folder, "status", "--porcelain")
    files = (changed or "").splitlines()
    return {
        "commit": commit,
        "branch": _ask_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "is_changed": changed is None or bool(files),
        "changed": [line.strip() for line in files[:_MOST_FILES]],
    }


def _ask_git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None if it refuses, is not installed or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
