"""The plugins that the layers of a recipe name: read once, and loaded if they may run.

A recipe of a user is like a program of theirs: its plugins run, and their code is trusted from then on. A checkpoint is
data: its plugins lie in its own folder `plugins/`, and run only if their code is trusted.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from vilavt_toolkit.config.limits import describe_bad_path
from vilavt_toolkit.errors import BadConfig, BadRecipe, UntrustedPlugins, VilavtError
from vilavt_toolkit.registry.plugins import Plugin, display_path, find_plugin, is_installed_module, load_plugin
from vilavt_toolkit.registry.trust import read_trusted, remember_code, trusts_all
from vilavt_toolkit.utils.text import shorten_list

PLUGIN_FOLDER = "plugins"
"""The folder of a checkpoint that holds its plugins."""


def find_checkpoint_folder(recipe: Path) -> Path | None:
    """Return the folder of the checkpoint or run that wrote a recipe file; None for a recipe of a user."""
    folder = recipe.parent
    beside = ["checkpoint.json"]
    # A run has this file from its first moment, and checkpoints only later. Other folders may hold checkpoints too.
    beside += ["versions.json", "checkpoints"] if recipe.name == "recipe.yaml" else []
    return folder if any((folder / name).exists() for name in beside) else None


class RecipePlugins:
    """Collects the plugins of a recipe, layer by layer, and loads them."""

    def __init__(self, errors: list[VilavtError]) -> None:
        self.found: list[Plugin] = []
        """The plugins of all layers, each once, in the order in which they are loaded."""
        self._errors = errors
        self._strange: dict[str, tuple[Plugin, Path]] = {}
        """The plugins that a checkpoint brings, by name, with its folder."""

    def add_layer(self, value: Any, folder: Path, label: str, checkpoint: Path | None = None) -> None:
        """Add a layer's plugins, whose paths are relative to the `folder` of its file.

        `checkpoint` is the folder of the checkpoint that the layer is of. What is wrong goes to `errors`.
        """
        if value is None:
            return
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(plugin, str) for plugin in listed):
            self._errors.append(
                BadConfig(f"{label}: plugins: expected a list of modules and .py files. Write it like [./my_part.py].")
            )
            return
        for name in listed:
            if wrong := describe_bad_path(name):
                self._errors.append(BadConfig(f"{label}: plugins: {wrong}"))
                continue
            try:
                plugin = find_plugin(name, folder) if checkpoint is None else _find_in_checkpoint(name, checkpoint)
            except BadRecipe as error:
                self._errors.append(BadRecipe(f"{label}: {error}"))
                continue
            if checkpoint is None:
                # What a recipe of the user names itself, too, is theirs.
                self._strange.pop(plugin.name, None)
            # A parent and its child may name the same plugin. Loaded twice it would register its names twice.
            if all(plugin.name != known.name for known in self.found):
                self.found.append(plugin)
                if checkpoint is not None:
                    self._strange[plugin.name] = plugin, checkpoint

    def load_all(self, label: str) -> None:
        """Load all plugins that were found; raises UntrustedPlugins before any code runs."""
        self._require_trust()
        for plugin in self.found:
            try:
                load_plugin(plugin)
            except BadRecipe as error:
                self._errors.append(BadRecipe(f"{label}: {error}"))
        # What has run once may run again. A checkpoint's installed modules need no trust.
        runs = {plugin.digest: plugin.module for plugin in self.found if not self._is_harmless(plugin)}
        remember_code({digest: module for digest, module in runs.items() if digest is not None})

    def _is_harmless(self, plugin: Plugin) -> bool:
        return plugin.name in self._strange and plugin.code is None

    def _require_trust(self) -> None:
        """Raise UntrustedPlugins if a checkpoint brings code that has not run here before and is not allowed now."""
        strange = [(plugin, folder) for plugin, folder in self._strange.values() if not plugin.is_loaded]
        if not strange:
            return
        trusted = read_trusted()
        for plugin, folder in strange:
            # Which module a name finds depends on this machine, so that even an allowed checkpoint may not choose one.
            if plugin.code is None and not (is_installed_module(plugin.name) or plugin.digest in trusted):
                raise UntrustedPlugins(
                    f"{folder} names the module {plugin.name!r} under plugins, which has not run here before. If you "
                    "know it, name it under `plugins:` of a recipe of your own and run `vilavt check` on that once."
                )
        new = {
            display_path(path): folder
            for plugin, folder in strange
            if plugin.code is not None and plugin.digest not in trusted
            for path in plugin.code.paths
        }
        if new and not trusts_all():
            raise UntrustedPlugins(
                f"{next(iter(new.values()))} brings code that has not run here before: {shorten_list([*new], 20)}. "
                "Read it, and if you trust it, add --trust-plugins (in Python trust_plugins=True)."
            )


def _find_in_checkpoint(name: str, folder: Path) -> Plugin:
    """Read a plugin of a checkpoint, whose files all lie in its own folder `plugins/`; raises BadRecipe."""
    if not name.endswith(".py"):
        return Plugin(name)
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[0] != PLUGIN_FOLDER:
        raise BadRecipe(
            f"plugins: {name!r} does not lie in {folder / PLUGIN_FOLDER}, where a checkpoint keeps its plugins. Use a "
            "recipe of your own to load it."
        )
    plugin = find_plugin(name, folder)
    inside = folder.resolve() / PLUGIN_FOLDER
    for file in plugin.code.paths if plugin.code is not None else ():
        # A link could lead to code that has nothing to do with the checkpoint.
        if not file.resolve().is_relative_to(inside):
            raise BadRecipe(
                f"plugins: {file} is a link to {file.resolve()}, outside the checkpoint. Copy the file here."
            )
    return plugin
