"""Loading of components: from the entry points of installed packages, and from the `plugins:` of a recipe."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vilavt_toolkit.errors import BadRecipe
from vilavt_toolkit.registry import ENTRY_POINTS, REGISTRIES, loaded_plugins, registering_from
from vilavt_toolkit.registry.plugin_code import PluginCode, digest_module, read_code
from vilavt_toolkit.utils.files import find_address

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


@dataclass(frozen=True)
class Plugin:
    """A plugin that a recipe names: a module, or a file whose code has been read."""

    name: str
    """The name of the module, or the absolute path of the file."""
    code: PluginCode | None = None
    """The code of a file; None for a module, which Python finds."""

    @property
    def module(self) -> str:
        """The name of the module that runs it."""
        return self.name if self.code is None else self.code.module

    @property
    def digest(self) -> str | None:
        """The digest of its code; None for a module that is not there, or is no Python code."""
        return digest_module(self.name) if self.code is None else self.code.digest

    @property
    def is_loaded(self) -> bool:
        """True if its code has run already, so that loading it runs nothing."""
        return self.module in loaded_plugins or (self.code is None and self.name in sys.modules)


def load_plugins(plugins: Iterable[str], relative_to: Path | None = None) -> None:
    """Import plugins, each once: names of modules, or .py files relative to a folder.

    Raises BadRecipe for one that is missing. One that fails stops with its own traceback and registers nothing.
    """
    for plugin in plugins:
        load_plugin(find_plugin(plugin, relative_to or Path.cwd()))


def find_plugin(plugin: str, folder: Path) -> Plugin:
    """Read the code of a plugin that is a file, relative to `folder`, or name the module; raises BadRecipe."""
    if not plugin.endswith(".py"):
        return Plugin(plugin)
    if address := find_address(plugin):
        raise BadRecipe(f"plugins: {address} is a web address. Download it, read it, and give the path of the file.")
    try:
        file = Path(os.path.abspath(folder / Path(plugin).expanduser()))
    except RuntimeError as error:
        raise BadRecipe(f"plugins: {plugin!r} names a home folder that is not known. Write the whole path.") from error
    return Plugin(str(file), read_code(file))


def load_plugin(plugin: Plugin) -> None:
    """Import a plugin unless it is loaded; raises BadRecipe for a module that is missing.

    One that fails stops with its own traceback and registers nothing.
    """
    if plugin.module in loaded_plugins:
        return
    if plugin.code is None:
        _check_module_exists(plugin.name)
    # A plugin that fails half way would leave some of its names registered, and could then not be loaded again.
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    modules = [plugin.name] if plugin.code is None else plugin.code.modules
    try:
        with registering_from(display_path(plugin.code.path) if plugin.code else _module_origin(plugin.name)):
            importlib.import_module(plugin.name) if plugin.code is None else plugin.code.import_module()
    except BaseException as error:
        for kind, registry in REGISTRIES.items():
            registry.restore(before[kind])
        # What it imported from beside it ran, but what that registered is gone.
        for module in set(modules) - loaded_plugins:
            sys.modules.pop(module, None)
        error.add_note(f"while importing the plugin {plugin.name!r}")
        raise
    loaded_plugins.update(modules)


def display_path(path: Path) -> str:
    """Write a path as a user would: relative if it lies in the current folder."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def is_installed_module(plugin: str) -> bool:
    """Return True for a module that an installed package names as its entry point for components."""
    return any(plugin == point.value.partition(":")[0] for point in metadata.entry_points(group=ENTRY_POINTS))


def _check_module_exists(plugin: str) -> None:
    """Raise BadRecipe for a module that is missing; one that fails on import is another matter."""
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
