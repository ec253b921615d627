"""Loading of components: from the entry points of installed packages, and from the `plugins:` of a recipe."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from vilavt_toolkit.errors import BadRecipe
from vilavt_toolkit.registry import ENTRY_POINTS, REGISTRIES, loaded_plugins, registering_from

log = logging.getLogger(__name__)

_builtin: set[str] = set()


def load_builtin() -> None:
    """Import the components of every installed package, once. One that fails stops with its own traceback."""
    if _builtin:
        return
    points = metadata.entry_points(group=ENTRY_POINTS)
    if not points:
        log.warning(
            "no installed package brings components, so every name in a recipe is unknown. Install the toolkit: "
            "`pip install -e .` in a checkout."
        )
    # The origin is recorded while a package registers its components, for `vilavt list` and for duplicate names.
    for point in points:
        key = f"{point.name} = {point.value}"
        origin = f"{point.value} {point.dist.version}" if point.dist else point.value
        try:
            with registering_from(origin):
                point.load()
        except BaseException as error:
            error.add_note(f"while importing the components of {origin} (entry point {key})")
            raise
    _builtin.update(point.value for point in points)


def load_plugins(plugins: Iterable[str], relative_to: Path | None = None) -> None:
    """Import plugins, each once: names of modules, or .py files relative to a folder.

    Raises BadRecipe for one that is missing. One that fails stops with its own traceback and registers nothing.
    """
    for plugin in plugins:
        file = plugin_file(plugin, relative_to or Path.cwd())
        if file is None:
            _load_plugin(plugin, plugin, None)
        else:
            _check_plugin_exists(plugin, file)
            # Named by content, so that a checkpoint's copy of a plugin that is loaded already is the same plugin.
            name = f"vilavt_plugin_{file.stem}_{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
            _load_plugin(plugin, name, file)


def plugin_file(plugin: str, folder: Path) -> Path | None:
    """Return the absolute path of a plugin that is a file, relative to `folder`; None for a module."""
    if not plugin.endswith(".py"):
        return None
    return Path(os.path.abspath(folder / Path(plugin).expanduser()))


def display_path(path: Path) -> str:
    """Write a path as a user would: relative if it lies in the current folder."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _load_plugin(plugin: str, module: str, file: Path | None) -> None:
    if module in loaded_plugins:
        return
    _check_plugin_exists(plugin, file)
    # A plugin that fails half way would leave some of its names registered, and could then not be loaded again.
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    try:
        with registering_from(display_path(file) if file else _module_origin(plugin)):
            if file is None:
                importlib.import_module(module)
            else:
                _import_file(module, file)
    except BaseException as error:
        for kind, registry in REGISTRIES.items():
            registry.restore(before[kind])
        error.add_note(f"while importing the plugin {plugin!r}")
        raise
    loaded_plugins.add(module)


def _check_plugin_exists(plugin: str, file: Path | None) -> None:
    """Raise BadRecipe for a plugin that is missing; one that fails on import is another matter."""
    if file is not None:
        if not file.is_file():
            raise BadRecipe(f"plugins: there is no file {file}. Write its path relative to the recipe's folder.")
        return
    found = all(part.isidentifier() for part in plugin.split("."))
    try:
        found = found and importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError as error:
        # If another module is missing, the parent package exists and its own import failed.
        if not f"{plugin}.".startswith(f"{error.name}."):
            raise
        found = False
    if not found:
        raise BadRecipe(
            f"plugins: there is no module {plugin!r}. Install it, or name a file beside the recipe, "
            f"like ./{plugin.split('.')[-1] or 'my_part'}.py."
        )


def _module_origin(plugin: str) -> str:
    package = plugin.split(".")[0]
    try:
        return f"{plugin} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return plugin


def _import_file(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadRecipe(f"plugins: {file} cannot be read as Python. Give it the suffix .py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, pickling and inspect look up the module of a class while it is defined.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
