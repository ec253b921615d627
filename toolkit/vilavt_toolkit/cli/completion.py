"""Words that a shell offers for the one that is being typed. Imports nothing heavy, since every Tab starts it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes, YAML files and folders whose names begin with a text."""
    from vilavt_toolkit.config.recipe import recipe_names
    from vilavt_toolkit.config.yaml_reading import SUFFIXES

    named = [name for name in recipe_names() if name.startswith(incomplete)]
    return [*named, *(name for name in _list_paths(incomplete) if name.endswith(("/", *SUFFIXES)))]


def complete_folder(incomplete: str) -> list[str]:
    """Return the folders whose names begin with a text."""
    return [name for name in _list_paths(incomplete) if name.endswith("/")]


def complete_kind(incomplete: str) -> list[str]:
    """Return the kinds of components whose names begin with a text."""
    from vilavt_toolkit.registry import REGISTRIES

    return [kind for kind in REGISTRIES if kind.startswith(incomplete)]


def _list_paths(incomplete: str) -> Iterator[str]:
    """Yield the files and folders whose paths begin with a text, folders with a slash at the end."""
    folder, slash, begun = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder or slash or ".").iterdir())
    except OSError:
        return
    for path in found:
        if path.name.startswith(begun) and (begun or not path.name.startswith(".")):
            yield f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
