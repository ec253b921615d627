"""Checks of arguments that need nothing heavy, before a command imports torch."""

from __future__ import annotations

from vilavt_toolkit.errors import UsageError


def check_resume(resume: bool, allow_changes: bool) -> None:
    """Raise UsageError if `--allow-changes` is given without `--resume`."""
    if allow_changes and not resume:
        raise UsageError("--allow-changes belongs to --resume: a new run may have any settings. Leave it out.")


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
