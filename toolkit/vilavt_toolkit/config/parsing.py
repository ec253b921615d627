"""Plain data (mappings, lists, scalars) to typed dataclasses and back, with all errors at once."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vilavt_toolkit.config.limits import LARGEST, MOST_PARTS, describe_bad_path, describe_out_of_bounds, is_layer_count
from vilavt_toolkit.errors import BadConfig, RecipeErrors, UnknownName, VilavtError
from vilavt_toolkit.registry import REGISTRIES, Part, Registry
from vilavt_toolkit.settings import default_of, did_you_mean
from vilavt_toolkit.utils.scalars import plain_scalar
from vilavt_toolkit.utils.text import format_value, shorten_text

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
"""A place in nested data: keys and list indices."""

_TOO_MANY = f"the recipe has more than {MOST_PARTS:,} components. Name fewer."
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ITEMS = {int: "ints", float: "floats", str: "texts"}
_WORDS = {int: "an int", float: "a float", bool: "true or false", str: "text", type(None): "null"}


class _Invalid:
    """The value of a key that has an error."""


INVALID = _Invalid()


def format_path(path: KeyPath) -> str:
    """Write a path like `model.modulator[1].name`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


class Location:
    """Names places in errors. `label` is the file, and the path in it, that holds the data."""

    def __init__(self, label: str = "", plugins_in: str = "") -> None:
        self.label = label
        self.plugins_in = plugins_in
        """The recipe whose `plugins:` could bring a missing component; empty for none."""

    def __call__(self, path: KeyPath) -> str:
        """Return the label and the dotted path."""
        tail = shorten_text(format_path(path))
        if not (self.label and tail):
            return self.label or tail
        return f"{self.label}.{tail}" if tail[0] != "[" else f"{self.label}{tail}"

    def find_file(self, path: KeyPath, name: str) -> str:
        """Return the path of a file or folder that the value at a path names; here the name as it is."""
        return name


def parse_config(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Read a mapping into the dataclass `cls`, strictly; raises RecipeErrors with every error."""
    parser = Parser(Location(where))
    value = parser.parse_dataclass(cls, mapping, ())
    if parser.errors or isinstance(value, _Invalid):
        raise RecipeErrors(parser.errors)
    return value


def to_plain(value: Any) -> Any:
    """Turn parsed data back into plain data that parses to the same. A list of one component becomes the component."""
    if isinstance(value, Part):
        return {"name": value.name, **to_plain(value.config)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_plain(item) for item in value]
        return items[0] if len(items) == 1 and isinstance(value[0], Part) else items
    return value


def typed_fields(cls: type[Any]) -> dict[str, tuple[Field[Any], Any]]:
    """Return the settable fields of a dataclass by name, each with its resolved type."""
    hints = get_type_hints(cls)
    return {f.name: (f, hints[f.name]) for f in fields(cls) if f.init}


def describe_type(annotation: Any) -> str:
    """Describe in words which values a type takes."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(arm) for arm in args)
    # "a list of ints" reads better than "a list of an int", so items have words of their own.
    if origin in (list, tuple, dict):
        inner = [_ITEMS.get(arg) or describe_type(arg) for arg in args if arg is not Ellipsis]
        if origin is dict:
            return "a mapping" if args[1] is Any else f"a mapping to {inner[1]}"
        return "a list of " + (inner[0] if origin is list or Ellipsis in args else ", ".join(inner))
    return "a mapping" if is_dataclass(annotation) else str(getattr(annotation, "__name__", annotation))


class Parser:
    """Reads plain data by type and collects errors, so that a user sees all of them at once."""

    def __init__(self, where: Location) -> None:
        self.where = where
        self.errors: list[VilavtError] = []
        self.parts = 0
        """Number of components that were read."""

    def add_error(self, path: KeyPath, message: str, error: type[VilavtError] = BadConfig) -> _Invalid:
        """Add an error at a path, and return INVALID as the value."""
        place = self.where(path)
        self.errors.append(error(f"{place}: {message}" if place else message))
        return INVALID

    # --- Mappings ------------------------------------------------------------------------------------------

    def parse_dataclass(self, cls: type[T], value: Any, path: KeyPath, part: Part | None = None) -> T | _Invalid:
        """Read a mapping into `cls`. `part` is the component whose settings these are, if any."""
        if not isinstance(value, Mapping):
            return self.add_error(
                path, f"expected a mapping of {', '.join(typed_fields(cls))}, got {format_value(value)}."
            )
        known = typed_fields(cls)
        errors_before = len(self.errors)
        renamed = {old: name for name, (f, _) in known.items() for old in f.metadata.get("formerly", ())}
        for key in value:
            if key in known:
                continue
            if key in renamed:
                new = renamed[key]
                self.add_error((*path, key), f"this key is now called {new}. Write {format_path((*path, new))}.")
            else:
                self._refuse_unknown_key(key, cls, path, part)
        # A required setting under its old name is one error, not a second one that it is missing.
        set_by_old_name = {renamed[key] for key in value if key in renamed}
        arguments = {}
        for name, (f, annotation) in known.items():
            if name in value:
                arguments[name] = self.parse_field(f, annotation, value[name], (*path, name))
            elif f.metadata.get("default_names"):
                arguments[name] = self._parse_default_parts(f, (*path, name))
            elif f.default is MISSING and f.default_factory is MISSING and name not in set_by_old_name:
                self._refuse_missing(f, (*path, name))
        self._refuse_alternatives(known, arguments, path)
        if len(self.errors) > errors_before:
            return INVALID
        try:
            return cls(**arguments)
        # `__post_init__` checks what no single setting can: how several go together.
        except ValueError as error:
            return self.add_error(path, str(error))

    def _refuse_unknown_key(self, key: Any, cls: type[Any], path: KeyPath, part: Part | None) -> None:
        known = typed_fields(cls)
        names = ", ".join(known) or "none"
        if part is not None:
            owner, noun, listed = f"'{part.name}'", "setting", f"settings of {part} ({cls.__name__}): {names}"
        else:
            owner, noun = f"'{path[-1]}'" if path else "it", "key"
            listed = f"keys{f' of {format_path(path)}' if path else ''}: {names}"
        shown = shorten_text(repr(key), 100) if isinstance(key, str) else format_value(key)
        self.add_error(
            (*path, key if isinstance(key, str) else shown),
            f"{owner} has no {noun} {shown}.{did_you_mean(key, tuple(known))}\n  {listed}",
        )

    def _refuse_alternatives(
        self, known: Mapping[str, tuple[Field[Any], Any]], given: Mapping[str, Any], path: KeyPath
    ) -> None:
        """Add an error for every two alternatives that are both set."""
        pairs = {name: f.metadata.get("replaces", ()) for name, (f, _) in known.items()}
        # One that has its default is not set: `config: null` is the way to unset an inherited alternative.
        chosen = [name for name in given if pairs[name] and given[name] != default_of(known[name][0])]
        for i, name in enumerate(chosen):
            for other in chosen[:i]:
                if other in pairs[name] and name in pairs[other]:
                    unset = " or ".join(f"`{key}: {json.dumps(default_of(known[key][0]))}`" for key in (other, name))
                    self.add_error(
                        (*path, name),
                        f"it and `{other}` ({self.where((*path, other))}) are alternatives. Leave one out, or write "
                        f"{unset}.",
                    )

    def _refuse_missing(self, f: Field[Any], path: KeyPath) -> None:
        text = f"missing, and it has no default. Set {format_path(path)} ({f.metadata.get('help', 'no help')})."
        if "part" in f.metadata:
            registry = REGISTRIES[f.metadata["part"]]
            text += f"\n  registered {registry.plural}: {', '.join(registry.names()) or 'none'}"
        self.add_error(path, text)

    def parse_field(self, f: Field[Any], annotation: Any, value: Any, path: KeyPath) -> Any:
        """Read one field's value."""
        if "part" not in f.metadata:
            result = self.parse_value(annotation, value, path)
            if isinstance(result, _Invalid):
                return result
            return self._find_files(result, path) if f.metadata.get("is_path") else self._check_range(f, result, path)
        # A mapping without a name means the default component, if the field has exactly one.
        default = _single_default(f)
        if not f.metadata["many"]:
            return self.parse_part(f.metadata["part"], value, path, default)
        if not isinstance(value, list | tuple):
            return [self.parse_part(f.metadata["part"], value, path, default)]
        if not value:
            return self.add_error(path, f"the list is empty. Name at least one {_registry_of_field(f).label}.")
        return [self.parse_part(f.metadata["part"], item, (*path, i)) for i, item in enumerate(value)]

    def _find_files(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._find_files(item, (*path, i)) for i, item in enumerate(value))
        if not isinstance(value, str) or not value:
            return value
        if wrong := describe_bad_path(value):
            return self.add_error(path, wrong)
        return self.where.find_file(path, value)

    def _check_range(self, f: Field[Any] | None, value: Any, path: KeyPath) -> Any:
        """Return a value if its numbers lie within the bounds of their key; `f` is the setting, if there is one."""
        key = next((step for step in reversed(path) if isinstance(step, str)), "")
        if isinstance(value, list | tuple):
            checked = [self._check_range(f, item, (*path, i)) for i, item in enumerate(value)]
            if is_layer_count(key) and all(type(item) is int for item in checked):
                self._check_range(f, sum(checked), path)
            return value
        # `type`, not isinstance: True is an int for isinstance, and has no range.
        if type(value) not in (int, float):
            return value
        wrong = describe_out_of_bounds(value, key, f)
        return self.add_error(path, wrong) if wrong else value

    # --- Parts ---------------------------------------------------------------------------------------------

    def _parse_default_parts(self, f: Field[Any], path: KeyPath) -> Any:
        parts = [self.parse_part(f.metadata["part"], {"name": name}, path) for name in f.metadata["default_names"]]
        return parts if f.metadata["many"] else parts[0]

    def parse_part(self, kind: str, value: Any, path: KeyPath, default: str | None = None) -> Part | _Invalid:
        """Read a component, given by its name alone or by a mapping of `name` and settings."""
        self.parts += 1
        if self.parts > MOST_PARTS:
            # Only the first is told: a list of a million components would give a million errors.
            return self.add_error(path, _TOO_MANY) if self.parts == MOST_PARTS + 1 else INVALID
        registry = REGISTRIES[kind]
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, Mapping):
            wanted = f"the name of a registered {registry.label}, or a mapping of name and settings"
            return self.add_error(path, f"expected {wanted}, got {format_value(value)}.")
        settings = dict(named)
        name = settings.pop("name", default)
        if name is None:
            known = ", ".join(registry.names())
            return self.add_error((*path, "name"), f"missing. Name one of the {registry.plural}: {known}.")
        if not isinstance(name, str):
            return self.add_error((*path, "name"), f"expected text, got {format_value(name)}. Put the name in quotes.")
        if name not in registry:
            text = registry.unknown_name_message(name)
            if self.where.plugins_in:
                text += f"\n  For a component of your own, add its file to `plugins:` in {self.where.plugins_in}."
            return self.add_error((*path, "name"), text, UnknownName)
        entry = registry.get(name)
        # The part without its config names the owner of the settings in errors.
        config = self.parse_dataclass(entry.config, settings, path, Part(kind, name, None))
        return config if isinstance(config, _Invalid) else Part(kind, name, config)

    # --- Values --------------------------------------------------------------------------------------------

    def parse_value(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        """Read a value of type `annotation`; return INVALID, with an error added, if it is of another type."""
        value, origin = plain_scalar(value), get_origin(annotation)
        if annotation is Any or annotation is object:
            return self._parse_plain_data(value, path)
        if is_dataclass(annotation):
            return self.parse_dataclass(annotation if isinstance(annotation, type) else type(annotation), value, path)
        if origin in (Union, types.UnionType):
            return self._parse_union(annotation, value, path)
        if origin in (list, tuple):
            return self._parse_list(annotation, value, path)
        if origin is dict:
            return self._parse_dict(get_args(annotation)[1], value, path)
        if origin is Literal:
            # 1 == True in Python, so the types are compared as well.
            if any(type(value) is type(option) and value == option for option in get_args(annotation)):
                return value
            text = f"expected {describe_type(annotation)}, got {format_value(value)}."
            return self.add_error(path, text + did_you_mean(value, [str(option) for option in get_args(annotation)]))
        return self._parse_scalar(annotation, value, path)

    def _parse_scalar(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        if annotation not in _WORDS:
            raise TypeError(f"A recipe cannot hold the type {annotation!r} of {format_path(path)}.")
        if type(value) is annotation:
            if annotation is float and not math.isfinite(value):
                return self.add_error(path, f"expected a finite float, got {value}.")
            if annotation is str and "\0" in value:
                return self.add_error(path, "the text holds a zero byte, which no file and no tokenizer takes.")
            return value
        hint = ""
        # An int, or a number in quotes, says clearly enough which float is meant.
        if annotation is float and (type(value) is int or (isinstance(value, str) and _NUMBER.fullmatch(value))):
            try:
                return self._parse_scalar(float, float(value), path)
            except OverflowError:
                hint = ", which is too large"
        if annotation is int and type(value) is float and value.is_integer():
            hint = f". Write {int(value)}" if abs(value) < LARGEST else ""
        if annotation is str and (value is None or type(value) in (int, float, bool)):
            hint = f". Put the text in quotes, on a command line within others: '{format_path(path)}=\"...\"'"
        return self.add_error(path, f"expected {describe_type(annotation)}, got {format_value(value)}{hint}.")

    def _parse_union(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        arms = get_args(annotation)
        for arm in arms:
            # Errors of an arm that does not fit are nobody's: each arm is tried by a parser of its own.
            attempt = Parser(self.where)
            result = attempt.parse_value(arm, value, path)
            if not attempt.errors:
                return result
        # No arm of the union fits. The one that takes the value's outer form says best what is wrong inside it.
        real = [arm for arm in arms if arm is not type(None)]
        same = [arm for arm in real if _container_of_type(arm) is _container_of_value(value)]
        candidates = real if len(real) == 1 else same
        if len(candidates) == 1 and value is not None and (len(real) == 1 or _container_of_value(value) is not None):
            return self.parse_value(candidates[0], value, path)
        return self.add_error(path, f"expected {describe_type(annotation)}, got {format_value(value)}.")

    def _parse_list(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        args, origin = get_args(annotation), get_origin(annotation)
        if not isinstance(value, list | tuple):
            return self.add_error(path, f"expected {describe_type(annotation)}, got {format_value(value)}.")
        # tuple[int, int] has a fixed length, tuple[int, ...] and list[int] do not.
        annotations: Sequence[Any] = [args[0]] * len(value)
        if origin is tuple and Ellipsis not in args:
            if len(value) != len(args):
                return self.add_error(path, f"expected {len(args)} values, got {len(value)}.")
            annotations = args
        items = [
            self.parse_value(each, item, (*path, i))
            for i, (each, item) in enumerate(zip(annotations, value, strict=True))
        ]
        return INVALID if any(isinstance(item, _Invalid) for item in items) else origin(items)

    def _parse_dict(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, Mapping):
            return self.add_error(path, f"expected a mapping, got {format_value(value)}.")
        items = {}
        for key, item in value.items():
            if isinstance(key, str):
                items[key] = self.parse_value(annotation, item, (*path, key))
            else:
                self.add_error((*path, format_value(key)), "a key must be text. Put it in quotes.")
        return items

    def _parse_plain_data(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping):
            return self._parse_dict(Any, value, path)
        if isinstance(value, list | tuple):
            items = [self._parse_plain_data(item, (*path, i)) for i, item in enumerate(value)]
            return self._check_range(None, items, path)
        if type(value) in _WORDS:
            return self._check_range(None, self._parse_scalar(type(value), value, path), path)
        return self.add_error(path, f"expected text, numbers, lists or mappings, got {format_value(value)}.")


def _container_of_type(annotation: Any) -> type[Any] | None:
    """Return dict or list if a type takes a mapping or a list, else None."""
    origin = get_origin(annotation)
    if origin is dict or is_dataclass(annotation):
        return dict
    return list if origin in (list, tuple) else None


def _container_of_value(value: Any) -> type[Any] | None:
    if isinstance(value, Mapping):
        return dict
    return list if isinstance(value, list | tuple) else None


def _single_default(f: Field[Any]) -> str | None:
    names = f.metadata["default_names"]
    return names[0] if names and len(names) == 1 else None


def _registry_of_field(f: Field[Any]) -> Registry[Any]:
    return REGISTRIES[f.metadata["part"]]
