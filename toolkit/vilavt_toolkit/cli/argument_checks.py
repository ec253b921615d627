"""Checks of arguments that need nothing heavy, before a command imports torch."""

from __future__ import annotations

from typing import Literal

from vilavt_toolkit.errors import UsageError


def read_resume(resume: bool, allow_changes: bool, overrides: list[str] | None) -> bool | Literal["auto"]:
    """Return how a run is resumed; the word `auto` after `--resume` is taken out of the overrides, where Typer puts it.

    Raises UsageError if `--allow-changes` is given without `--resume`.
    """
    if allow_changes and not resume:
        raise UsageError("--allow-changes belongs to --resume: a new run may have any settings. Leave it out.")
    if resume and overrides and "auto" in overrides:
        overrides.remove("auto")
        return "auto"
    return resume


def check_overrides(overrides: list[str] | None) -> None:
    """Raise UsageError for an override that is no KEY=VALUE."""
    from vilavt_toolkit.config.recipe import split_override

    for override in overrides or ():
        split_override(override)


def check_recipe_argument(recipe: str, overrides: list[str] | None) -> None:
    """Refuse a missing recipe or a malformed override before torch is imported, which takes seconds."""
    from vilavt_toolkit.config.recipe import find_recipe

    find_recipe(recipe)
    check_overrides(overrides)
