"""Recipes: found, read, laid over what they inherit, checked; all errors at once, with file and path."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilavt_toolkit.config import checkpoint_layer as underlay
from vilavt_toolkit.config.layers import Layers, References, split_key
from vilavt_toolkit.config.parsing import KeyPath, Parser, Where, parse_config, to_plain
from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.errors import BadConfig, BadRecipe, RecipeErrors, UsageError, VilavtError
from vilavt_toolkit.registry.plugins import display, load_builtin, load_plugins, plugin_file
from vilavt_toolkit.settings import did_you_mean

__all__ = [
    "CheckedRecipe",
    "dump",
    "find_recipe",
    "load_recipe",
    "parse_config",
    "recipe_names",
    "split_override",
]

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe whose every key, name and type is right."""

    recipe: Recipe
    resolved: dict[str, Any] = field(repr=False)
    """Plain data with every default filled in; read again, it gives the same recipe."""
    notes: tuple[str, ...]
    """What the reader should know, such as inherited settings that were dropped."""
    path: Path

    @property
    def name(self) -> str:
        """Name of the recipe: its file's, without the ending; with its folder if it came with the package."""
        return _own_name(self.path)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> CheckedRecipe:
    """Read a recipe and `a.b=c` overrides; raises RecipeErrors with all that is wrong, or BadRecipe."""
    path = find_recipe(name_or_path)
    label, layers, errors = display(path), Layers(Recipe), list[VilavtError]()
    plugins: list[str] = []
    own: list[tuple[dict[str, Any], str]] = []
    for file in reversed(_lineage(path)):
        mapping = _read(file)
        mapping.pop("inherits", None)
        _take_plugins(mapping.pop("plugins", None), file.parent, display(file), plugins, errors)
        underlay.resolve(mapping, file.parent)
        own.append((mapping, display(file)))
    assignments = _assignments(overrides, plugins, errors)
    # Components first: what a setting may be depends on the component that the recipe names.
    load_builtin()
    for plugin in plugins:
        try:
            load_plugins([plugin])
        except BadRecipe as error:
            errors.append(BadRecipe(f"{label}: {error}"))
    underlay.lay(layers, underlay.named([mapping for mapping, _ in own], assignments), label, errors)
    for mapping, where in own:
        layers.add(mapping, where)
    for keys, value in assignments:
        try:
            layers.assign(keys, value, COMMAND_LINE)
        except UsageError as error:
            errors.append(BadConfig(f"{COMMAND_LINE}: {error}"))
    layers.tree["plugins"] = plugins
    layers.tree["run"] = layers.tree.get("run") or f"runs/{_own_name(path)}"
    return _check(layers, path, errors)


def dump(checked: CheckedRecipe) -> str:
    """Write a checked recipe, every default filled in, as YAML that reads back to the same."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(checked.resolved))


class _LayerWhere(Where):
    """Names the file that set the value at a path."""

    def __init__(self, layers: Layers, label: str) -> None:
        super().__init__(label, plugins_in=label)
        self._layers = layers

    def __call__(self, path: KeyPath) -> str:
        tail = Where()(path)
        label = self._layers.label(path, self.label)
        return f"{label}: {tail}" if tail else label


def _check(layers: Layers, path: Path, errors: list[VilavtError]) -> CheckedRecipe:
    where = _LayerWhere(layers, display(path))
    references = References(layers.tree, where)
    tree = references.fill()
    parser = Parser(where)
    recipe = parser.dataclass(Recipe, tree, ())
    errors = [*errors, *references.errors, *parser.errors]
    if errors or not isinstance(recipe, Recipe):
        raise RecipeErrors(errors)
    return CheckedRecipe(recipe, to_plain(recipe), tuple(layers.notes), path)


# --- Finding -------------------------------------------------------------------------------------------


def recipe_folder() -> Path | None:
    """Return the folder of the repository's recipes: installed with the package, or in its checkout."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    for folder, is_ours in ((package / "recipes", True), (checkout / "recipes", _is_checkout(checkout))):
        if is_ours and folder.is_dir():
            return folder
    return None


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "toolkit").is_dir()


def recipe_names() -> list[str]:
    """Names of the recipes that came with the package."""
    folder = recipe_folder()
    if folder is None:
        return []
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """Find a recipe by the path of its file, or by name among those installed; raises BadRecipe."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if _is_file(path):
            return path
        raise BadRecipe(f"there is no recipe file {text}; check the path.")
    known = recipe_names()
    folder = recipe_folder()
    if folder is not None and text in known:
        return folder / f"{text}.yaml"
    raise BadRecipe(
        f"no recipe named '{text}'.{did_you_mean(text, known)}\n"
        f"  recipes: {', '.join(known) or 'none'}\n"
        f"  Your own? Give the path of its file, like ./{path.name}.yaml."
    )


def _own_name(path: Path) -> str:
    """What a recipe is found by: of one that came with the package its folder too, like modulation/film."""
    folder, found = recipe_folder(), path.resolve()
    if folder is None or not found.is_relative_to(folder):
        return path.stem
    return found.relative_to(folder).with_suffix("").as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise BadRecipe(f"{path} cannot be read: {error.strerror}; check the path.") from error


def _lineage(path: Path) -> list[Path]:
    """The recipe, its parent, and so on."""
    chain = [path]
    while True:
        child = chain[-1]
        parent = _read(child).get("inherits")
        if parent is None:
            return chain
        if not isinstance(parent, str):
            raise BadRecipe(f"{display(child)}: inherits: name one recipe.")
        found = _find_parent(parent, child)
        if any(found.resolve() == known.resolve() for known in chain):
            names = " -> ".join(display(file) for file in [*chain, found])
            raise BadRecipe(f"{display(child)}: inherits: recipes in a circle: {names}.")
        chain.append(found)


def _find_parent(name_or_path: str, child: Path) -> Path:
    """Find what a recipe inherits: a file relative to its own, or a recipe that came with the package."""
    try:
        for beside in (child.parent / name_or_path, child.parent / f"{name_or_path}.yaml"):
            if _is_file(beside):
                return beside
        if Path(name_or_path).suffix in (".yaml", ".yml"):
            raise BadRecipe(f"there is no recipe file {child.parent / name_or_path}; check the path.")
        return find_recipe(name_or_path)
    except BadRecipe as error:
        raise BadRecipe(f"{display(child)}: inherits: {error}") from error


# --- Reading -------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; raises BadRecipe naming the line."""
    label = display(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecipe(f"{label} is not UTF-8 text; is it a recipe?") from error
    except OSError as error:
        raise BadRecipe(f"{label} cannot be read: {error.strerror}.") from error
    data = _from_yaml(text, label)
    if not isinstance(data, dict):
        raise BadRecipe(f"{label} holds no mapping; a recipe has keys like `model:`.")
    return data


def _from_yaml(text: str, label: str) -> Any:
    """Read YAML into plain data as omegaconf does (1e-3 is a number, a key twice is an error)."""
    from omegaconf import OmegaConf

    with _naming(label):
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _value(text: str, label: str) -> Any:
    """Read the value of an override."""
    from omegaconf import OmegaConf

    with _naming(label, lines=False):
        holder: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        return holder["value"]


@contextmanager
def _naming(label: str, lines: bool = True) -> Iterator[None]:
    """Turn what YAML and omegaconf raise into BadRecipe, naming the key, and the line where there are any."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or "it is no YAML"
        twice = re.match(r"found duplicate key (.*)", problem)
        what = f"the key '{twice[1]}' stands twice in one mapping; keep one" if twice else problem
        line = f", line {mark.line + 1}" if lines and mark else ""
        raise BadRecipe(f"{label}{line}: {what}.") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise BadRecipe(f"{label}: {f'{key}: ' if key else ''}{str(error).splitlines()[0]}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRecipe(f"{label} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    except OSError as error:  # what omegaconf says of a document that is one number
        raise BadRecipe(f"{label} holds no mapping; a recipe has keys like `model:`.") from error


def split_override(override: str) -> tuple[KeyPath, str]:
    """Split `a.b=c` into keys and text; raises UsageError."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"'{override}' is no override; write key=value, like train.steps=100.")
    return split_key(key.strip()), text


def _assignments(overrides: Sequence[str], plugins: list[str], errors: list[VilavtError]) -> list[tuple[KeyPath, Any]]:
    """Read overrides, a part's name before its settings: the name decides what those may be."""
    found = []
    for override in overrides:
        try:
            keys, text = split_override(override)
            value = _value(text, f"{COMMAND_LINE}: {override}")
        except UsageError as error:
            errors.append(error)
            continue
        if keys == ("plugins",):
            _take_plugins(value, Path.cwd(), COMMAND_LINE, plugins, errors)
        else:
            found.append((keys, value))
    return sorted(found, key=lambda item: len(item[0]) - (item[0][-1] == "name"))


def _take_plugins(value: Any, folder: Path, label: str, plugins: list[str], errors: list[VilavtError]) -> None:
    """Add a layer's plugins, with the paths of files made absolute: each layer's are relative to itself."""
    if value is None:
        return
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(plugin, str) for plugin in listed):
        errors.append(BadConfig(f"{label}: plugins: expected a list of modules and .py files."))
        return
    for plugin in listed:
        file = plugin_file(plugin, folder)
        name = str(file) if file else plugin
        if name not in plugins:
            plugins.append(name)
