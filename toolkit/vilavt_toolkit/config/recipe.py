"""Recipes: finding, reading, merging with inherited ones, checking; all errors at once, with file and key."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.checkpoint_layer import absolutise_checkpoint, add_checkpoint_layer, effective_checkpoint
from vilavt_toolkit.config.layers import Layers, References, split_key
from vilavt_toolkit.config.parsing import KeyPath, Location, Parser, format_path, parse_config, to_plain
from vilavt_toolkit.config.recipe_plugins import RecipePlugins, find_checkpoint_folder
from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.config.yaml_reading import SUFFIXES, parse_value, read_yaml
from vilavt_toolkit.errors import BadConfig, BadRecipe, RecipeErrors, UsageError, VilavtError
from vilavt_toolkit.registry.plugins import Plugin, display_path, load_builtin
from vilavt_toolkit.registry.trust import trusting_plugins
from vilavt_toolkit.settings import did_you_mean
from vilavt_toolkit.utils.text import shorten_list, shorten_text

__all__ = [
    "CheckedRecipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "parse_config",
    "read_yaml",
    "recipe_names",
    "split_override",
]

COMMAND_LINE = "command line"
MOST_ANCESTORS = 20
"""Recipes that inherit each other."""

ConvertRecipe = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Translates a recipe's plain data with the keys of an earlier version to today's."""


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe in which every key, name and type is right."""

    recipe: Recipe
    resolved: dict[str, Any] = field(repr=False)
    """Plain data with every default filled in. Read again, it gives the same recipe."""
    notes: tuple[str, ...]
    """Sentences for the reader, such as inherited settings that were dropped."""
    path: Path
    plugins: tuple[Plugin, ...] = field(default=(), repr=False)
    """The plugins that were loaded for it, with the code that ran."""
    where: Location = field(default_factory=Location, repr=False, compare=False)
    """Names the file, or the command line, that set the value at a path."""

    @property
    def name(self) -> str:
        """Name of the recipe: its file without the ending, with the folder if it came with the package."""
        return _recipe_name(self.path)


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    convert: ConvertRecipe | None = None,
    trust_plugins: bool = False,
) -> CheckedRecipe:
    """Read a recipe and overrides `a.b=c`; raises RecipeErrors with every error, BadRecipe, or UntrustedPlugins.

    `convert` translates each file's plain data to today's keys, after the plugins were loaded. Checkpoints of earlier
    versions need it. `trust_plugins` allows the plugins of a checkpoint's recipe that have not run here before.
    """
    path = find_recipe(name_or_path)
    label, layers, errors = display_path(path), Layers(Recipe), list[VilavtError]()
    plugins = RecipePlugins(errors)
    own: list[tuple[dict[str, Any], str]] = []
    lineage = _find_lineage(path)
    for read in reversed(lineage):
        mapping, folder, where = read.mapping, read.file.parent, display_path(read.file)
        mapping.pop("inherits", None)
        plugins.add_layer(mapping.pop("plugins", None), folder, where, read.checkpoint)
        absolutise_checkpoint(mapping, folder)
        own.append((mapping, where))
    assignments = _read_overrides(overrides, plugins, errors)
    # Components first: the settings that a recipe may write depend on the components that it names.
    load_builtin()
    with trusting_plugins(trust_plugins):
        plugins.load_all(label)
    if convert is not None:
        own = [(convert(mapping), where) for mapping, where in own]
    checkpoint = effective_checkpoint([mapping for mapping, _ in own], assignments)
    add_checkpoint_layer(layers, checkpoint, label, errors)
    for mapping, where in own:
        layers.add_mapping(mapping, where)
    for keys, value in assignments:
        try:
            layers.assign_value(keys, value, COMMAND_LINE)
        except UsageError as error:
            errors.append(BadConfig(f"{COMMAND_LINE}: {error}"))
    layers.tree["plugins"] = [plugin.name for plugin in plugins.found]
    # Compared with the empty text: YAML reads `run: 0`, `run: no` and `run:` as values that Python takes for empty too.
    if layers.tree.get("run", "") == "":
        layers.tree["run"] = f"runs/{_recipe_name(path)}"
    folders = {display_path(read.file): read.file.parent for read in lineage}
    return replace(_check_layers(layers, path, folders, errors), plugins=tuple(plugins.found))


def dump_recipe(checked: CheckedRecipe) -> str:
    """Write a checked recipe with every default filled in, as YAML that reads back to the same."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(checked.resolved))


class _LayerLocation(Location):
    """Names the file, or the command line, that set the value at a path."""

    def __init__(self, layers: Layers, label: str, folders: Mapping[str, Path]) -> None:
        super().__init__(label, plugins_in=label)
        self._layers, self._folders = layers, folders

    def __call__(self, path: KeyPath) -> str:
        tail = Location()(path)
        label = self._layers.find_label(path, self.label)
        # What is wrong with a section or a component may be the fault of a value inside it.
        if label != COMMAND_LINE:
            label = self._layers.find_last_file(path, label)
            if typed := self._layers.find_below(path, COMMAND_LINE):
                label = f"{label} with {COMMAND_LINE} {shorten_list([format_path(each) for each in typed])}"
        return f"{label}: {tail}" if tail else label

    def find_file(self, path: KeyPath, name: str) -> str:
        """Return the absolute path of what lies beside the file that set the value; any other name stays as it is.

        So a name may also be relative to the current folder, and a hub name is none of a file.
        """
        folder = self._folders.get(self._layers.find_label(path, self.label))
        # `part-{000..010}.tar` stands for files of one folder.
        known, brace, _ = name.partition("{")
        try:
            beside = Path(os.path.abspath((folder or Path()) / Path(known).expanduser()))
            found = any(beside.parent.glob(f"{glob.escape(beside.name)}*")) if brace else beside.exists()
        # The name is too long, holds a zero byte, or names the home of nobody.
        except (OSError, ValueError, RuntimeError):
            return name
        return name if folder is None or not found else str(beside) + name[len(known) :]


def _check_layers(layers: Layers, path: Path, folders: Mapping[str, Path], errors: list[VilavtError]) -> CheckedRecipe:
    where = _LayerLocation(layers, display_path(path), folders)
    references = References(layers.tree, Recipe, where)
    tree = references.fill_tree()
    parser = Parser(where)
    recipe = parser.parse_dataclass(Recipe, tree, ())
    errors = [*errors, *references.errors, *parser.errors]
    if errors or not isinstance(recipe, Recipe):
        raise RecipeErrors(errors)
    return CheckedRecipe(recipe, to_plain(recipe), tuple(layers.notes), path, where=where)


# --- Finding -------------------------------------------------------------------------------------------


def recipe_folder() -> Path | None:
    """Return the folder of the recipes that came with the package or its checkout; None if there is none."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    for folder, is_ours in ((package / "recipes", True), (checkout / "recipes", _is_checkout(checkout))):
        if is_ours and folder.is_dir():
            return folder
    return None


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "toolkit").is_dir()


def recipe_names() -> list[str]:
    """Return the names of the recipes that came with the package."""
    folder = recipe_folder()
    if folder is None:
        return []
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """Find a recipe by the path of its file, or by its name among the installed ones; raises BadRecipe."""
    text = str(name_or_path)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadRecipe(f"{shorten_text(text)} names a home folder that is not known. Write the whole path.") from error
    # The ending decides, so that a file `quickstart` in the current folder never hides the installed recipe.
    if path.suffix in SUFFIXES:
        if _is_file(path):
            return path
        raise BadRecipe(f"there is no recipe file {shorten_text(text)}. Check the path.")
    known = recipe_names()
    folder = recipe_folder()
    if folder is not None and text in known:
        return folder / f"{text}.yaml"
    raise BadRecipe(
        f"no recipe named '{shorten_text(text)}'.{did_you_mean(text, known)}\n"
        f"  recipes: {', '.join(known) or 'none'}\n"
        f"  For a recipe of your own give the path of its file, like ./{shorten_text(path.name)}.yaml."
    )


def _recipe_name(path: Path) -> str:
    """Return the name that finds a recipe. One that came with the package has its folder too, like modulation/film."""
    folder = recipe_folder()
    if folder is None or not _is_installed(path):
        return path.stem
    return path.resolve().relative_to(folder).with_suffix("").as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # The name is too long, or a folder on the way may not be entered.
    except OSError as error:
        raise BadRecipe(f"{path} cannot be read ({error.strerror}). Check the path.") from error


@dataclass(frozen=True)
class _ReadFile:
    """One file of a recipe."""

    file: Path
    mapping: dict[str, Any]
    checkpoint: Path | None
    """The folder of the checkpoint that it is of; None for a recipe of a user or of the package."""


def _find_lineage(path: Path) -> list[_ReadFile]:
    """Read the file of a recipe, of the recipe that it inherits, and so on."""
    chain = [_ReadFile(path, read_yaml(path), find_checkpoint_folder(path))]
    while True:
        child, checkpoint = chain[-1].file, chain[-1].checkpoint
        parent = chain[-1].mapping.get("inherits")
        if parent is None:
            return chain
        if not isinstance(parent, str):
            raise BadRecipe(f"{display_path(child)}: inherits: write the name or path of one recipe.")
        found = _find_parent(parent, child)
        if checkpoint is not None and not _is_installed(found):
            # What a checkpoint inherits is of the checkpoint, or its plugins would be taken for the user's own.
            if not found.resolve().is_relative_to(checkpoint.resolve()):
                raise BadRecipe(
                    f"{display_path(child)}: inherits: {shorten_text(parent)!r} lies outside the checkpoint. Copy the "
                    "recipe out of its folder and use the copy."
                )
        else:
            checkpoint = find_checkpoint_folder(found)
        # Resolved, since the same file can be reached by several paths.
        if any(found.resolve() == known.file.resolve() for known in chain):
            names = " -> ".join(display_path(file) for file in [*(known.file for known in chain), found])
            raise BadRecipe(
                f"{display_path(child)}: inherits: the recipes inherit each other in a circle: {names}. Take one "
                "`inherits` out."
            )
        if len(chain) == MOST_ANCESTORS:
            raise BadRecipe(f"{display_path(child)}: inherits: more than {MOST_ANCESTORS} recipes inherit each other.")
        chain.append(_ReadFile(found, read_yaml(found), checkpoint))


def _is_installed(path: Path) -> bool:
    """Return True for the file of a recipe that came with the package."""
    folder = recipe_folder()
    return folder is not None and path.resolve().is_relative_to(folder)


def _find_parent(name_or_path: str, child: Path) -> Path:
    """Find the recipe that `child` inherits: a file relative to its own, or an installed recipe; raises BadRecipe."""
    try:
        for beside in (child.parent / name_or_path, child.parent / f"{name_or_path}.yaml"):
            # Errors quote what a recipe holds, so that no file of another kind is read as one, also through a link.
            if _is_file(beside) and beside.suffix in SUFFIXES:
                if beside.resolve().suffix not in SUFFIXES:
                    raise BadRecipe(f"{beside} is a link to a file of another kind. Name a .yaml file.")
                return beside
        if Path(name_or_path).suffix in SUFFIXES:
            raise BadRecipe(
                f"there is no recipe file {shorten_text(str(child.parent / name_or_path))}. Check the path."
            )
        if _is_file(child.parent / name_or_path):
            raise BadRecipe(f"{shorten_text(name_or_path)} is no .yaml file. Name a recipe.")
        return find_recipe(name_or_path)
    except BadRecipe as error:
        raise BadRecipe(f"{display_path(child)}: inherits: {error}") from error


# --- Overrides ------------------------------------------------------------------------------------------


def split_override(override: str) -> tuple[KeyPath, str]:
    """Split an override `a.b=c` into keys and text; raises UsageError."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"'{shorten_text(override)}' is no override. Write key=value, like train.steps=100.")
    return split_key(key.strip()), text


def _read_overrides(
    overrides: Sequence[str], plugins: RecipePlugins, errors: list[VilavtError]
) -> list[tuple[KeyPath, Any]]:
    """Read overrides into (keys, value), a component's name before its settings."""
    found = []
    for override in overrides:
        try:
            keys, text = split_override(override)
            value = parse_value(text, f"{COMMAND_LINE}: {shorten_text(override)}")
        except UsageError as error:
            errors.append(error)
            continue
        if keys == ("plugins",):
            plugins.add_layer(value, Path.cwd(), COMMAND_LINE)
        else:
            found.append((keys, value))
    # The name decides which settings there are, so `name` comes one level before its place.
    return sorted(found, key=lambda item: len(item[0]) - (item[0][-1] == "name"))
