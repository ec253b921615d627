"""Settings: config dataclasses declare a key with its default, help and range. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field
from difflib import get_close_matches
from typing import Any

_LONGEST_NAME = 100


def setting(
    default: Any = MISSING,
    *,
    help: str,
    factory: Callable[[], Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    replaces: tuple[str, ...] = (),
    formerly: tuple[str, ...] = (),
    is_path: bool = False,
) -> Any:
    """Declare one setting of a component's config dataclass: default, help, inclusive range.

    `replaces` names alternatives. When a child recipe or the command line sets this one, the inherited ones are
    dropped; two that replace each other may not both be set. `formerly` holds the names that the setting had in
    earlier versions: a recipe that uses one is refused with the new name, and old checkpoints are converted.
    `is_path` marks names of files and folders, which a recipe may write relative to its own folder.
    """
    # Facts travel as field metadata, so that a config stays a plain dataclass that anybody can build in Python.
    facts = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "replaces": replaces,
        "formerly": formerly,
        "is_path": is_path,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=facts)
    return field(default=default, metadata=facts)


def part(
    kind: str,
    help: str,
    default_name: str | tuple[str, ...] | None = None,
    many: bool = False,
    formerly: tuple[str, ...] = (),
) -> Any:
    """Declare a key that names a component of `kind`; with `many`, one or a list of them.

    Without `default_name` the key is required. A default is looked up when a recipe is read, as any name is.
    `formerly` is that of `setting`.
    """
    names = (default_name,) if isinstance(default_name, str) else default_name
    facts = {"help": help, "part": kind, "many": many, "default_names": names, "formerly": formerly}
    # The true default needs the registries, so the parser fills it in; None only keeps the field optional.
    return field(default=MISSING if names is None else None, metadata=facts)


def default_of(f: Field[Any]) -> Any:
    """Return the default of a setting; MISSING if the setting is required."""
    return f.default if f.default_factory is MISSING else f.default_factory()


@dataclass(frozen=True)
class NoSettings:
    """Config of a component without settings."""


def did_you_mean(name: object, known: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty string."""
    # Comparing takes time that grows with the square of the length, and no name is that long.
    if isinstance(name, str) and len(name) > _LONGEST_NAME:
        return ""
    names, begun = list(known), str(name)
    # `bf16` is far from `bf16-mixed` by letters, and is how people call it.
    longer = [each for each in names if len(begun) > 1 and each.startswith(begun)]
    close = longer or get_close_matches(begun, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
