"""What a recipe's `model.checkpoint` lays under its keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.layers import Layers
from vilavt_toolkit.config.parsing import KeyPath
from vilavt_toolkit.errors import MissingWeights, RecipeErrors, VilavtError


def resolve(mapping: dict[str, Any], folder: Path) -> None:
    """Make a layer's `model.checkpoint` absolute where it is a folder: each layer's is relative to itself."""
    if found := _of(mapping):
        mapping["model"]["checkpoint"] = _absolute(found, folder)


def named(layers: Sequence[dict[str, Any]], assignments: list[tuple[KeyPath, Any]]) -> str:
    """The `model.checkpoint` that holds: the last that is set, whose path on the command line is made absolute."""
    found = ""
    for mapping in layers:
        told = _of(mapping)
        found = found if told is None else told
    for number, (keys, value) in enumerate(assignments):
        if keys == ("model", "checkpoint") and isinstance(value, str):
            found = _absolute(value, Path.cwd())
            assignments[number] = keys, found
    return found


def lay(layers: Layers, name: str, label: str, errors: Sequence[VilavtError]) -> None:
    """Lay a checkpoint's parts down, under all that the recipe itself says; raises RecipeErrors without them."""
    if not name:
        return
    from vilavt_toolkit.formats.foreign import find, is_hub_name

    try:
        try:
            section = find(name, weights=False).section()
        except MissingWeights:
            if not is_hub_name(name):
                raise
            section = find(name).section()
    except VilavtError as error:
        # Without its parts nearly every key of the recipe would be wrong.
        raise RecipeErrors([*errors, type(error)(f"{label}: model.checkpoint: {error}")]) from error
    layers.add({"model": section}, f"checkpoint {name}")


def _of(mapping: dict[str, Any]) -> str | None:
    """What a layer sets as `model.checkpoint`; None where it does not."""
    model = mapping.get("model")
    found = model.get("checkpoint") if isinstance(model, dict) else None
    return found if isinstance(found, str) else None


def _absolute(value: str, folder: Path) -> str:
    """A folder's absolute path, relative to `folder` or to here; what is none stays as it is."""
    beside = [base / Path(value).expanduser() for base in (folder, Path.cwd())] if value else []
    return next((os.path.abspath(path) for path in beside if path.is_dir()), value)
