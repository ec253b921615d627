"""How components arrive: entry points of installed packages, and the `plugins:` of a recipe."""

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
    """Import the components of every installed package, once; one that fails stops with its own traceback."""
    if _builtin:
        return
    points = metadata.entry_points(group=ENTRY_POINTS)
    if not points:
        log.warning(
            "No package brings components: the toolkit is imported but not installed. Install it "
            "(`pip install -e .` in a checkout), or every name in a recipe is unknown."
        )
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
    """Import plugins: names of modules, or .py files relative to a folder; twice is once.

    One that is not there raises BadRecipe; one that fails stops with its own traceback and registers nothing.
    """
    for plugin in plugins:
        file = plugin_file(plugin, relative_to or Path.cwd())
        if file is None:
            _load(plugin, plugin, None)
        else:
            _require(plugin, file)
            # By content: a checkpoint's copy of a plugin that is loaded already is the same plugin.
            name = f"vilavt_plugin_{file.stem}_{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
            _load(plugin, name, file)


def plugin_file(plugin: str, folder: Path) -> Path | None:
    """Return the absolute path of a plugin that is a file (relative ones lie in `folder`), or None."""
    if not plugin.endswith(".py"):
        return None
    return Path(os.path.abspath(folder / Path(plugin).expanduser()))


def display(path: Path) -> str:
    """Write a path as a user would: relative to the current folder where it lies inside."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _load(plugin: str, module: str, file: Path | None) -> None:
    if module in loaded_plugins:
        return
    _require(plugin, file)
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    try:
        with registering_from(display(file) if file else _origin(plugin)):
            if file is None:
                importlib.import_module(module)
            else:
                _run_file(module, file)
    except BaseException as error:
        for kind, registry in REGISTRIES.items():
            registry.restore(before[kind])
        error.add_note(f"while importing the plugin {plugin!r}")
        raise
    loaded_plugins.add(module)


def _require(plugin: str, file: Path | None) -> None:
    """Tell a plugin that is not there from one that fails."""
    if file is not None:
        if not file.is_file():
            raise BadRecipe(f"plugins: there is no file {file}; paths are relative to the recipe's folder.")
        return
    found = all(part.isidentifier() for part in plugin.split("."))
    try:
        found = found and importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError as error:
        if not f"{plugin}.".startswith(f"{error.name}."):  # the parent package is there and fails by itself
            raise
        found = False
    if not found:
        raise BadRecipe(
            f"plugins: there is no module {plugin!r} to import; install it, or name a file beside the recipe "
            f"like ./{plugin.split('.')[-1] or 'my_part'}.py."
        )


def _origin(plugin: str) -> str:
    package = plugin.split(".")[0]
    try:
        return f"{plugin} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return plugin


def _run_file(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadRecipe(f"plugins: {file} cannot be read as Python.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, pickling and inspect look a class's module up while it is being made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
