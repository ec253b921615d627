"""The code that may run when a checkpoint is loaded: what this user has run before, remembered by its content.

A checkpoint is data. Its plugins run only if the same bytes have run from a recipe of this user, or were allowed once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

log = logging.getLogger(__name__)

SETTINGS_VARIABLE = "VILAVT_CONFIG_HOME"
"""The environment variable that names another folder for the user's settings."""

_TRUST_ALL: ContextVar[bool] = ContextVar("trust_all", default=False)
"""True while the user allows all plugins. A ContextVar, so that threads that load at once do not share theirs."""


@contextmanager
def trusting_plugins(trust: bool = True) -> Iterator[None]:
    """Allow the plugins of every checkpoint that is loaded inside; with False change nothing."""
    token = _TRUST_ALL.set(trust or _TRUST_ALL.get())
    try:
        yield
    finally:
        _TRUST_ALL.reset(token)


def trusts_all() -> bool:
    """Return True inside `trusting_plugins`."""
    return _TRUST_ALL.get()


def settings_folder() -> Path | None:
    """Return the folder of this user's settings, which may not exist yet; None if the user has no home."""
    if named := os.environ.get(SETTINGS_VARIABLE):
        return Path(named)
    base = Path(os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME", ""))
    # A relative folder counts as unset, as the XDG specification says.
    if base.is_absolute():
        return base / "vilavt"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    below = {"win32": "AppData/Roaming", "darwin": "Library/Application Support"}.get(sys.platform, ".config")
    return home / below / "vilavt"


def read_trusted() -> frozenset[str]:
    """Return the digests of all code that was trusted before; none if there is no list."""
    file = _trust_file()
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None else []
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(line.split()[0] for line in lines if line.strip())


def remember_code(digests: Mapping[str, str]) -> None:
    """Trust code from now on, given the names of plugins by their digests; log a warning if that cannot be written."""
    known = read_trusted()
    lines = [f"{digest}  {name}\n" for digest, name in digests.items() if digest not in known]
    file = _trust_file()
    if not lines or file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write at the end of the file, so that two processes at once lose nothing.
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
    except OSError as error:
        log.warning(
            "%s cannot be written (%s), so plugins that run now are asked for again when a checkpoint brings them. Set "
            "%s to a folder that can be written.",
            file,
            error.strerror,
            SETTINGS_VARIABLE,
        )


def _trust_file() -> Path | None:
    folder = settings_folder()
    return None if folder is None else folder / "trusted-plugins"
