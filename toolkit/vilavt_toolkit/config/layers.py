"""Layers of a recipe laid over each other: inherited < own < command line; then references filled in."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from vilavt_toolkit.config.parsing import KeyPath, dotted, typed_fields
from vilavt_toolkit.errors import BadConfig, UsageError
from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.settings import default_of

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\}")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*")


def split_key(key: str) -> KeyPath:
    """Read `a.b[0].c` or `a.b.0.c`; raises UsageError."""
    if not _KEY.fullmatch(key):
        raise UsageError(f"'{key}' is no path of a key, like model.modulator.name or model.stopping[0].turns.")
    steps = [index or word for word, index in _STEP.findall(key)]
    return tuple(int(step) if step.isdecimal() else step for step in steps)


@dataclass(frozen=True)
class _Shape:
    """What the schema says of one place: a dataclass, a part, a list of parts, or (all empty) plain data."""

    section: type[Any] | None = None
    part: str = ""
    many: bool = False
    default_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, f: Field[Any], kind: Any) -> _Shape:
        if "part" in f.metadata:
            return cls(None, f.metadata["part"], f.metadata["many"], f.metadata["default_names"] or ())
        # A section that may be null is one all the same.
        arms = [arm for arm in (get_args(kind) or (kind,)) if isinstance(arm, type) and is_dataclass(arm)]
        return cls(arms[0] if arms and get_origin(kind) in (None, Union, UnionType) else None)

    @property
    def one(self) -> _Shape:
        """The shape of one part of a list."""
        return _Shape(None, self.part, False, self.default_names if len(self.default_names) == 1 else ())

    def settings(self, node: Any) -> dict[str, tuple[Field[Any], Any]]:
        """The fields known here, with their types; in a part, those of the component that `node` names."""
        section = self.section
        if self.part:
            name = self.name_of(node)
            registry = REGISTRIES[self.part]
            section = registry.get(name).config if name in registry else None
        return typed_fields(section) if section else {}

    def inside(self, key: Any, node: Any) -> _Shape:
        """The shape under `key`."""
        known = self.settings(node)
        return _Shape.of(*known[key]) if key in known else _Shape()

    def replaced(self, key: Any, value: Any, node: Mapping[str, Any]) -> list[str]:
        """The settings of `node` whose place `key` takes, where it was not set before."""
        known = self.settings(node)

        def is_set(name: str, value: Any) -> bool:
            return value is not None and value != default_of(known[name][0])

        if key not in known or not is_set(key, value) or is_set(key, node.get(key)):
            return []
        others = known[key][0].metadata.get("replaces", ())
        return [other for other in others if other in known and is_set(other, node.get(other))]

    def name_of(self, node: Any) -> Any:
        """The name of a part: given, or the default."""
        default = self.default_names[0] if len(self.default_names) == 1 else None
        return node.get("name", default) if isinstance(node, Mapping) else default


class Layers:
    """The tree of a recipe under construction; knows which layer each value came from."""

    def __init__(self, schema: type[Any]) -> None:
        self.tree: dict[str, Any] = {}
        self.files: dict[KeyPath, str] = {}
        """Which layer set the value at a path."""
        self.notes: list[str] = []
        self._root = _Shape(schema)

    def add(self, mapping: Mapping[str, Any], label: str) -> None:
        """Lay a whole recipe over what there is."""
        self.tree = self._merge(self.tree, mapping, self._root, (), label)

    def assign(self, path: KeyPath, value: Any, label: str) -> None:
        """Lay one `a.b=c` over what there is; raises UsageError where there is no such place."""
        self.tree = self._assign(self.tree, path, value, self._root, (), label)

    def label(self, path: KeyPath, default: str) -> str:
        """Return the layer that set the value at `path`, or what holds it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.files:
                return self.files[path[:length]]
        return default

    # --- Merging -------------------------------------------------------------------------------------------

    def _set(self, value: Any, path: KeyPath, label: str) -> Any:
        """Record that `label` set all of `value`, and return a copy that nobody shares."""
        self._forget(path)
        self.files[path] = label
        return copy.deepcopy(value)

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.files if known[: len(path)] == path]:
            del self.files[known]

    def _merge(self, old: Any, new: Any, shape: _Shape, path: KeyPath, label: str) -> Any:
        if shape.many:
            if isinstance(new, Mapping | str) and isinstance(old, list) and len(old) == 1:
                return [self._merge(old[0], new, shape.one, (*path, 0), label)]
            if isinstance(new, Mapping | str) and not isinstance(old, list):
                return self._merge(old, new, shape.one, path, label)
            return self._set(new, path, label)
        if shape.part:
            new = {"name": new} if isinstance(new, str) else new
            old = {"name": old} if isinstance(old, str) else old
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            return self._set(new, path, label)
        if shape.part and self._renamed(old, new, shape, path, label):
            return self._set(new, path, label)
        merged = dict(old)
        for key, value in new.items():
            if key in old:
                merged[key] = self._merge(old[key], value, shape.inside(key, old), (*path, key), label)
            else:
                merged[key] = self._set(value, (*path, key), label)
        for key in new:
            gone = [other for other in shape.replaced(key, merged[key], old) if other not in new]
            self._drop(merged, gone, (*path, key), label)
        return merged

    def _drop(self, node: dict[str, Any], keys: Sequence[str], path: KeyPath, label: str) -> None:
        """Take out of `node` what earlier layers set and the setting at `path` takes the place of; notes it."""
        sources: dict[str, list[str]] = {}
        for key in keys:
            source = self.label((*path[:-1], key), "the recipe")
            if key in node and source != label:  # of one layer none gives way: the parser refuses both
                del node[key]
                self._forget((*path[:-1], key))
                sources.setdefault(source, []).append(key)
        for source, dropped in sources.items():
            names = ", ".join(dropped)
            self.notes.append(
                f"{label}: {dotted(path[:-1])}: '{path[-1]}' replaces settings of {source}, which go: {names}."
            )

    def _renamed(
        self, old: Mapping[str, Any], new: Mapping[str, Any], shape: _Shape, path: KeyPath, label: str
    ) -> bool:
        """Whether a layer names another component, which has settings of its own; notes what is dropped."""
        before, after = shape.name_of(old), new.get("name", shape.name_of(old))
        if after == before:
            return False
        dropped = [str(key) for key in old if key != "name"]
        if dropped:
            source = self.label(path, "the recipe")
            self.notes.append(
                f"{label}: {dotted(path)}: '{after}' replaces '{before}' of {source}, whose settings go:"
                f" {', '.join(dropped)}."
            )
        return True

    # --- The command line ----------------------------------------------------------------------------------

    def _assign(self, node: Any, rest: KeyPath, value: Any, shape: _Shape, path: KeyPath, label: str) -> Any:
        if not rest:
            return self._merge(node, value, shape, path, label)
        step = rest[0]
        if shape.many:
            return self._assign_in_parts(node, rest, value, shape, path, label)
        if shape.part:
            node = {"name": node} if isinstance(node, str) else node
            if rest == ("name",):
                return self._merge(node, {"name": value}, shape, path, label)
        if isinstance(node, list):
            return self._assign_item(node, rest, value, _Shape(), path, label)
        if node is None:
            node = {}
            self.files[path] = label
        if not isinstance(node, Mapping):
            raise UsageError(f"{dotted(path)} is no mapping and has no '{step}'; give {dotted(path)} itself.")
        key = str(step)
        inner = self._assign(node.get(key), rest[1:], value, shape.inside(key, node), (*path, key), label)
        assigned = {**node, key: inner}
        self._drop(assigned, shape.replaced(key, inner, node), (*path, key), label)
        return assigned

    def _assign_in_parts(self, node: Any, rest: KeyPath, value: Any, shape: _Shape, path: KeyPath, label: str) -> Any:
        if node is None and len(shape.default_names) > 1:
            node = [{"name": name} for name in shape.default_names]
        if isinstance(rest[0], int):
            items = node if isinstance(node, list) else [node]
            return self._assign_item(items, rest, value, shape.one, path, label)
        if not isinstance(node, list):
            return self._assign(node, rest, value, shape.one, path, label)
        if len(node) == 1:
            return [self._assign(node[0], rest, value, shape.one, (*path, 0), label)]
        example = dotted((*path, 0, *rest))
        raise UsageError(f"{dotted(path)} has {len(node)} parts; say which, as in {example}.")

    def _assign_item(self, node: list[Any], rest: KeyPath, value: Any, shape: _Shape, path: KeyPath, label: str) -> Any:
        step = rest[0]
        if not isinstance(step, int) or step >= len(node):
            raise UsageError(f"{dotted(path)} has {len(node)} items, numbered from 0; there is no {step!r}.")
        item = self._assign(node[step], rest[1:], value, shape, (*path, step), label)
        return [*node[:step], item, *node[step + 1 :]]


class References:
    """Fills in `${a.b}`: plain references to other keys of the same recipe. Nothing else is evaluated."""

    def __init__(self, tree: Mapping[str, Any], where: Any) -> None:
        self.tree = tree
        self.where = where
        self.errors: list[BadConfig] = []

    def fill(self) -> dict[str, Any]:
        """Return the tree with all references filled in; what is wrong stands in `errors`."""
        return {key: self._node(value, (key,), ()) for key, value in self.tree.items()}

    def _node(self, node: Any, path: KeyPath, asked: tuple[str, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: self._node(value, (*path, key), asked) for key, value in node.items()}
        if isinstance(node, list):
            return [self._node(value, (*path, i), asked) for i, value in enumerate(node)]
        if isinstance(node, str) and "${" in node:
            return self._text(node, path, asked)
        return node

    def _complain(self, path: KeyPath, message: str) -> str:
        self.errors.append(BadConfig(f"{self.where(path)}: {message}"))
        return ""

    def _text(self, text: str, path: KeyPath, asked: tuple[str, ...]) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole:
            return self._look_up(whole[1], path, asked)
        if "${" in _REFERENCE.sub(" ", text):
            return self._complain(path, f"{text!r} is no plain reference like ${{train.steps}}.")

        def insert(match: re.Match[str]) -> str:
            value = self._look_up(match[1], path, asked)
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                return self._complain(path, f"only text and numbers go inside text; {match[0]} is neither.")
            return str(value)

        filled = _REFERENCE.sub(insert, text)
        if "${" in filled:
            return self._complain(path, "the references in it make a new reference; write it out.")
        return filled

    def _look_up(self, key: str, path: KeyPath, asked: tuple[str, ...]) -> Any:
        if key in asked:
            return self._complain(path, f"the references {' -> '.join((*asked, key))} go round in a circle.")
        node: Any = self.tree
        for step in split_key(key):
            if isinstance(node, Mapping) and str(step) in node:
                node = node[str(step)]
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                node = node[step]
            else:
                return self._complain(path, f"${{{key}}} refers to a key that the recipe does not set.")
        return self._node(node, path, (*asked, key))
