"""The lowest layer of a recipe: the section `model` that its `model.checkpoint` stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.layers import Layers
from vilavt_toolkit.config.parsing import KeyPath
from vilavt_toolkit.errors import BadConfig, MissingWeights, RecipeErrors, VilavtError
from vilavt_toolkit.utils.text import shorten_text


def absolutise_checkpoint(mapping: dict[str, Any], folder: Path) -> None:
    """Make a layer's `model.checkpoint` absolute if it is a folder: a path is relative to the file that holds it."""
    if found := _own_checkpoint(mapping):
        mapping["model"]["checkpoint"] = _absolute_folder(found, folder)


def effective_checkpoint(layers: Sequence[dict[str, Any]], assignments: list[tuple[KeyPath, Any]]) -> str:
    """Return the effective `model.checkpoint`, which the last layer that sets it decides; empty for none.

    A path from the command line is made absolute, also in `assignments`.
    """
    effective = ""
    for mapping in layers:
        own = _own_checkpoint(mapping)
        # An empty text is a value too: a child recipe takes its parent's checkpoint away with it.
        effective = effective if own is None else own
    for number, (keys, value) in enumerate(assignments):
        if keys == ("model", "checkpoint") and isinstance(value, str):
            effective = _absolute_folder(value, Path.cwd())
            assignments[number] = keys, effective
    return effective


def add_checkpoint_layer(layers: Layers, name: str, label: str, errors: Sequence[VilavtError]) -> None:
    """Add a checkpoint's section `model` as the lowest layer; raises RecipeErrors if it cannot be read.

    `label` is the recipe that names it, and `errors` are those found so far.
    """
    if not name:
        return
    from vilavt_toolkit.formats.foreign import find_foreign_checkpoint, is_hub_name

    try:
        # Descriptions are kilobytes and weights are gigabytes: the weights come only if the descriptions do not do.
        try:
            section = find_foreign_checkpoint(name, weights=False).read_section()
        except MissingWeights:
            if not is_hub_name(name):
                raise
            section = find_foreign_checkpoint(name).read_section()
    # The name of a home that is not known, or what no file can be called.
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeErrors([*errors, BadConfig(f"{label}: model.checkpoint: {shorten_text(str(error))}.")]) from error
    except VilavtError as error:
        # Without this layer nearly every key of the recipe would be reported as wrong.
        raise RecipeErrors([*errors, type(error)(f"{label}: model.checkpoint: {error}")]) from error
    layers.add_mapping({"model": section}, f"checkpoint {name}")


def _own_checkpoint(mapping: dict[str, Any]) -> str | None:
    """Return the `model.checkpoint` that a layer itself sets, or None."""
    model = mapping.get("model")
    found = model.get("checkpoint") if isinstance(model, dict) else None
    return found if isinstance(found, str) else None


def _absolute_folder(value: str, folder: Path) -> str:
    """Return the absolute path of a folder, relative to `folder` or the current one; a hub name stays unchanged."""
    try:
        candidates = [base / Path(value).expanduser() for base in (folder, Path.cwd())] if value else []
        return next((os.path.abspath(path) for path in candidates if path.is_dir()), value)
    # The name is too long, or names the home of nobody. The parser says so of paths, in one place.
    except (OSError, RuntimeError, ValueError):
        return value
