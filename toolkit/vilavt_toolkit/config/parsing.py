"""Plain data (mappings, lists, scalars) to typed dataclasses and back; all errors at once, with paths."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vilavt_toolkit.errors import BadConfig, RecipeErrors, UnknownName, VilavtError
from vilavt_toolkit.registry import REGISTRIES, Part, Registry
from vilavt_toolkit.settings import default_of, did_you_mean

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
"""A place in nested data: keys and list indices."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ITEMS = {int: "ints", float: "floats", str: "texts"}
_WORDS = {int: "an int", float: "a float", bool: "true or false", str: "text", type(None): "null"}


class _Invalid:
    """What a value that has been complained about becomes."""


INVALID = _Invalid()


def dotted(path: KeyPath) -> str:
    """Write a path as in `model.modulator[1].name`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


class Where:
    """Names places in errors: `label` is the file (and path) that the data stands in."""

    def __init__(self, label: str = "", plugins_in: str = "") -> None:
        self.label = label
        self.plugins_in = plugins_in
        """The recipe whose `plugins:` could bring a missing component."""

    def __call__(self, path: KeyPath) -> str:
        """Return the label and the dotted path."""
        tail = dotted(path)
        if not (self.label and tail):
            return self.label or tail
        return f"{self.label}.{tail}" if tail[0] != "[" else f"{self.label}{tail}"


def parse_config(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Read a mapping into the dataclass `cls`, strictly; raises RecipeErrors with all that is wrong."""
    parser = Parser(Where(where))
    value = parser.dataclass(cls, mapping, ())
    if parser.errors or isinstance(value, _Invalid):
        raise RecipeErrors(parser.errors)
    return value


def to_plain(value: Any) -> Any:
    """Turn parsed data back into plain data that parses to the same; a list of one part becomes the part."""
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
    """The settable fields of a dataclass by name, each with its resolved type."""
    hints = get_type_hints(cls)
    return {f.name: (f, hints[f.name]) for f in fields(cls) if f.init}


def expected(kind: Any) -> str:
    """Say in words what a type takes."""
    if kind in _WORDS:
        return _WORDS[kind]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(expected(arm) for arm in args)
    if origin in (list, tuple, dict):
        inner = [_ITEMS.get(arg) or expected(arg) for arg in args if arg is not Ellipsis]
        if origin is dict:
            return "a mapping" if args[1] is Any else f"a mapping to {inner[1]}"
        return "a list of " + (inner[0] if origin is list or Ellipsis in args else ", ".join(inner))
    return "a mapping" if is_dataclass(kind) else str(getattr(kind, "__name__", kind))


class Parser:
    """Reads plain data by type, collecting errors."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.errors: list[VilavtError] = []

    def complain(self, path: KeyPath, message: str, error: type[VilavtError] = BadConfig) -> _Invalid:
        """Note an error at a path."""
        place = self.where(path)
        self.errors.append(error(f"{place}: {message}" if place else message))
        return INVALID

    # --- Mappings ------------------------------------------------------------------------------------------

    def dataclass(self, cls: type[T], value: Any, path: KeyPath, part: Part | None = None) -> T | _Invalid:
        """Read a mapping into `cls`; `part` says whose settings these are."""
        if not isinstance(value, Mapping):
            return self.complain(path, f"expected a mapping of {', '.join(typed_fields(cls))}, got {_show(value)}.")
        known = typed_fields(cls)
        before = len(self.errors)
        for key in value:
            if key not in known:
                self._unknown_key(key, cls, path, part)
        arguments = {}
        for name, (f, kind) in known.items():
            if name in value:
                arguments[name] = self.field(f, kind, value[name], (*path, name))
            elif f.metadata.get("default_names"):
                arguments[name] = self._default_parts(f, (*path, name))
            elif f.default is MISSING and f.default_factory is MISSING:
                self._missing(f, (*path, name))
        self._alternatives(known, arguments, path)
        if len(self.errors) > before:
            return INVALID
        try:
            return cls(**arguments)
        except ValueError as error:  # what __post_init__ finds wrong between settings
            return self.complain(path, str(error))

    def _unknown_key(self, key: Any, cls: type[Any], path: KeyPath, part: Part | None) -> None:
        known = typed_fields(cls)
        names = ", ".join(known) or "none"
        if part is not None:
            owner, noun, listed = f"'{part.name}'", "setting", f"settings of {part} ({cls.__name__}): {names}"
        else:
            owner, noun = f"'{path[-1]}'" if path else "it", "key"
            listed = f"keys{f' of {dotted(path)}' if path else ''}: {names}"
        self.complain(
            (*path, key if isinstance(key, str) else repr(key)),
            f"{owner} has no {noun} {key!r}.{did_you_mean(key, tuple(known))}\n  {listed}",
        )

    def _alternatives(
        self, known: Mapping[str, tuple[Field[Any], Any]], given: Mapping[str, Any], path: KeyPath
    ) -> None:
        """Complain of every two settings that replace each other and are both set."""
        pairs = {name: f.metadata.get("replaces", ()) for name, (f, _) in known.items()}
        chosen = [name for name in given if pairs[name] and given[name] != default_of(known[name][0])]
        for i, name in enumerate(chosen):
            for other in chosen[:i]:
                if other in pairs[name] and name in pairs[other]:
                    unset = " or ".join(f"`{key}: {json.dumps(default_of(known[key][0]))}`" for key in (other, name))
                    self.complain(
                        (*path, name),
                        f"it and `{other}` ({self.where((*path, other))}) are alternatives; leave one out, or write "
                        f"{unset}.",
                    )

    def _missing(self, f: Field[Any], path: KeyPath) -> None:
        text = f"missing, and has no default ({f.metadata.get('help', 'no help')})."
        if "part" in f.metadata:
            registry = REGISTRIES[f.metadata["part"]]
            text += f"\n  registered {registry.plural}: {', '.join(registry.names()) or 'none'}"
        self.complain(path, text)

    def field(self, f: Field[Any], kind: Any, value: Any, path: KeyPath) -> Any:
        """Read one field's value."""
        if "part" not in f.metadata:
            result = self.value(kind, value, path)
            return result if isinstance(result, _Invalid) else self._in_range(f, result, path)
        default = _single_default(f)
        if not f.metadata["many"]:
            return self.part(f.metadata["part"], value, path, default)
        if not isinstance(value, list | tuple):
            return [self.part(f.metadata["part"], value, path, default)]
        if not value:
            return self.complain(path, f"the list is empty; name at least one {_registry(f).label}.")
        return [self.part(f.metadata["part"], item, (*path, i)) for i, item in enumerate(value)]

    def _in_range(self, f: Field[Any], value: Any, path: KeyPath) -> Any:
        low, high = f.metadata.get("minimum"), f.metadata.get("maximum")
        if type(value) in (int, float):
            if low is not None and value < low:
                return self.complain(path, f"{value} is below the least, {low} ({f.metadata['help']}).")
            if high is not None and value > high:
                return self.complain(path, f"{value} is above the most, {high} ({f.metadata['help']}).")
        if isinstance(value, list | tuple):
            for i, item in enumerate(value):
                self._in_range(f, item, (*path, i))
        return value

    # --- Parts ---------------------------------------------------------------------------------------------

    def _default_parts(self, f: Field[Any], path: KeyPath) -> Any:
        parts = [self.part(f.metadata["part"], {"name": name}, path) for name in f.metadata["default_names"]]
        return parts if f.metadata["many"] else parts[0]

    def part(self, kind: str, value: Any, path: KeyPath, default: str | None = None) -> Part | _Invalid:
        """Read a component: its name alone, or a mapping of `name` and its settings."""
        registry = REGISTRIES[kind]
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, Mapping):
            wanted = f"the name of a registered {registry.label}, or a mapping of name and settings"
            return self.complain(path, f"expected {wanted}, got {_show(value)}.")
        settings = dict(named)
        name = settings.pop("name", default)
        if name is None:
            known = ", ".join(registry.names())
            return self.complain((*path, "name"), f"missing; name one of the {registry.plural}: {known}.")
        if not isinstance(name, str):
            return self.complain((*path, "name"), f"expected text, got {_show(name)}; quote a name.")
        if name not in registry:
            text = registry.unknown(name)
            if self.where.plugins_in:
                text += f"\n  Yours missing? Add its module to `plugins:` in {self.where.plugins_in}."
            return self.complain((*path, "name"), text, UnknownName)
        entry = registry.get(name)
        config = self.dataclass(entry.config, settings, path, Part(kind, name, None))
        return config if isinstance(config, _Invalid) else Part(kind, name, config)

    # --- Values --------------------------------------------------------------------------------------------

    def value(self, kind: Any, value: Any, path: KeyPath) -> Any:
        """Read a value of type `kind`; returns INVALID, having complained, where it cannot be one."""
        origin = get_origin(kind)
        if kind is Any or kind is object:
            return self._plain(value, path)
        if is_dataclass(kind):
            return self.dataclass(kind if isinstance(kind, type) else type(kind), value, path)
        if origin in (Union, types.UnionType):
            return self._union(kind, value, path)
        if origin in (list, tuple):
            return self._list(kind, value, path)
        if origin is dict:
            return self._dict(get_args(kind)[1], value, path)
        if origin is Literal:
            if any(type(value) is type(option) and value == option for option in get_args(kind)):
                return value
            text = f"expected {expected(kind)}, got {_show(value)}."
            return self.complain(path, text + did_you_mean(value, [str(option) for option in get_args(kind)]))
        return self._scalar(kind, value, path)

    def _scalar(self, kind: Any, value: Any, path: KeyPath) -> Any:
        if kind not in _WORDS:
            raise TypeError(f"A recipe cannot hold the type {kind!r} of {dotted(path)}.")
        if type(value) is kind:
            if kind is float and not math.isfinite(value):
                return self.complain(path, f"expected a finite float, got {value}.")
            return value
        hint = ""
        if kind is float and (type(value) is int or (isinstance(value, str) and _NUMBER.fullmatch(value))):
            try:
                return self._scalar(float, float(value), path)
            except OverflowError:
                hint = ", which is too large"
        if kind is int and type(value) is float and value.is_integer():
            hint = f"; write {int(value)}"
        if kind is str and type(value) in (int, float, bool):
            hint = "; quote it"
        return self.complain(path, f"expected {expected(kind)}, got {_show(value)}{hint}.")

    def _union(self, kind: Any, value: Any, path: KeyPath) -> Any:
        arms = get_args(kind)
        for arm in arms:
            attempt = Parser(self.where)
            result = attempt.value(arm, value, path)
            if not attempt.errors:
                return result
        # The one arm that takes the value's outer form knows best what is wrong inside it.
        real = [arm for arm in arms if arm is not type(None)]
        same = [arm for arm in real if _outer(arm) is _outer_of(value)]
        candidates = real if len(real) == 1 else same
        if len(candidates) == 1 and value is not None and (len(real) == 1 or _outer_of(value) is not None):
            return self.value(candidates[0], value, path)
        return self.complain(path, f"expected {expected(kind)}, got {_show(value)}.")

    def _list(self, kind: Any, value: Any, path: KeyPath) -> Any:
        args, origin = get_args(kind), get_origin(kind)
        if not isinstance(value, list | tuple):
            return self.complain(path, f"expected {expected(kind)}, got {_show(value)}.")
        kinds: Sequence[Any] = [args[0]] * len(value)
        if origin is tuple and Ellipsis not in args:
            if len(value) != len(args):
                return self.complain(path, f"expected {len(args)} values, got {len(value)}.")
            kinds = args
        items = [self.value(each, item, (*path, i)) for i, (each, item) in enumerate(zip(kinds, value, strict=True))]
        return INVALID if any(isinstance(item, _Invalid) for item in items) else origin(items)

    def _dict(self, kind: Any, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, Mapping):
            return self.complain(path, f"expected a mapping, got {_show(value)}.")
        items = {}
        for key, item in value.items():
            if isinstance(key, str):
                items[key] = self.value(kind, item, (*path, key))
            else:
                self.complain((*path, repr(key)), "keys are text; quote it.")
        return items

    def _plain(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping):
            return self._dict(Any, value, path)
        if isinstance(value, list | tuple):
            return [self._plain(item, (*path, i)) for i, item in enumerate(value)]
        if type(value) in _WORDS:
            return self._scalar(type(value), value, path)
        return self.complain(path, f"expected text, numbers, lists or mappings, got {_show(value)}.")


def _outer(kind: Any) -> type[Any] | None:
    """Mapping or list, as a type takes it."""
    origin = get_origin(kind)
    if origin is dict or is_dataclass(kind):
        return dict
    return list if origin in (list, tuple) else None


def _outer_of(value: Any) -> type[Any] | None:
    if isinstance(value, Mapping):
        return dict
    return list if isinstance(value, list | tuple) else None


def _single_default(f: Field[Any]) -> str | None:
    names = f.metadata["default_names"]
    return names[0] if names and len(names) == 1 else None


def _registry(f: Field[Any]) -> Registry[Any]:
    return REGISTRIES[f.metadata["part"]]


def _show(value: Any) -> str:
    """Write a value and its type, short enough for a sentence."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
