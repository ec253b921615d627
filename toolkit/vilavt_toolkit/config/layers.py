"""The layers of a recipe merged into one tree: inherited < own < command line. References are filled in last."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vilavt_toolkit.config.parsing import KeyPath, Location, format_path
from vilavt_toolkit.config.schema_node import SchemaNode
from vilavt_toolkit.errors import BadConfig, UsageError
from vilavt_toolkit.utils.text import shorten_list, shorten_text

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\}")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_LONGEST_KEY = 400
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*")


def split_key(key: str) -> KeyPath:
    """Split a key such as `a.b[0].c` or `a.b.0.c` into its steps; raises UsageError."""
    # A key of thousands of steps would need as many levels of calls.
    if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
        raise UsageError(
            f"'{shorten_text(key)}' is no key. Write it like model.modulator.name or model.stopping[0].turns."
        )
    steps = [index or word for word, index in _STEP.findall(key)]
    return tuple(int(step) if step.isdecimal() else step for step in steps)


class Layers:
    """The tree of a recipe under construction, with the layer that each value came from."""

    def __init__(self, schema: type[Any]) -> None:
        self.tree: dict[str, Any] = {}
        self.labels: dict[KeyPath, str] = {}
        """The layer that set the value at each path."""
        self.notes: list[str] = []
        """Sentences for the reader: settings of lower layers that were dropped."""
        self._files: list[str] = []
        """The layers that are files, the recipe itself last."""
        self._root = SchemaNode(schema)

    def add_mapping(self, mapping: Mapping[str, Any], label: str) -> None:
        """Merge a whole mapping over the lower layers."""
        self._files.append(label)
        self.tree = self._merge_node(self.tree, mapping, self._root, (), label)

    def assign_value(self, path: KeyPath, value: Any, label: str) -> None:
        """Set the value of one override `a.b=c`; raises UsageError if the tree has no such place."""
        self.tree = self._assign_node(self.tree, path, value, self._root, (), label)

    def find_label(self, path: KeyPath, default: str) -> str:
        """Return the layer that set the value at `path`, or the mapping that holds it; else `default`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.labels:
                return self.labels[path[:length]]
        return default

    def find_last_file(self, path: KeyPath, default: str) -> str:
        """Return the last file that set the value at `path` or any below it; else `default`."""
        below = {layer for each, layer in self.labels.items() if each[: len(path)] == path}
        return next((file for file in reversed(self._files) if file in below), default)

    def find_below(self, path: KeyPath, label: str) -> list[KeyPath]:
        """Return the paths below `path` whose values the layer `label` set."""
        return [each for each, layer in self.labels.items() if layer == label and each[: len(path)] == path != each]

    # --- Merging -------------------------------------------------------------------------------------------

    def _copy_as_set_by(self, value: Any, path: KeyPath, label: str) -> Any:
        """Record that `label` set all of `value`, and return a copy of its own."""
        # What is recorded below the path describes the value that is replaced.
        self._forget_labels(path)
        self.labels[path] = label
        return copy.deepcopy(value)

    def _forget_labels(self, path: KeyPath) -> None:
        for known in [known for known in self.labels if known[: len(path)] == path]:
            del self.labels[known]

    def _merge_node(self, old: Any, new: Any, schema: SchemaNode, path: KeyPath, label: str) -> Any:
        # One component may stand for a list of one: `modulator: {hidden_dim: 8}` changes the only modulator.
        if schema.many:
            if isinstance(new, Mapping | str) and isinstance(old, list) and len(old) == 1:
                return [self._merge_node(old[0], new, schema.one_part(), (*path, 0), label)]
            if isinstance(new, Mapping | str) and not isinstance(old, list):
                return self._merge_node(old, new, schema.one_part(), path, label)
            return self._copy_as_set_by(new, path, label)
        # `modulator: film` is short for `modulator: {name: film}`.
        if schema.part:
            new = {"name": new} if isinstance(new, str) else new
            old = {"name": old} if isinstance(old, str) else old
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            return self._copy_as_set_by(new, path, label)
        if schema.part and self._has_other_component(old, new, schema, path, label):
            return self._copy_as_set_by(new, path, label)
        merged = dict(old)
        for key, value in new.items():
            # The lower layer's component says what may stand under `key`, not the upper one's mapping.
            if key in old:
                merged[key] = self._merge_node(old[key], value, schema.child(key, old), (*path, key), label)
            else:
                merged[key] = self._copy_as_set_by(value, (*path, key), label)
        for key in new:
            gone = [other for other in schema.replaced_settings(key, merged[key], old) if other not in new]
            self._drop_replaced(merged, gone, (*path, key), label)
        return merged

    def _drop_replaced(self, node: dict[str, Any], keys: Sequence[str], path: KeyPath, label: str) -> None:
        """Remove from `node` the settings of lower layers that the setting at `path` replaces, and note it."""
        sources: dict[str, list[str]] = {}
        for key in keys:
            source = self.find_label((*path[:-1], key), "the recipe")
            # Two alternatives in one layer are a mistake: both stay, and the parser refuses them.
            if key in node and source != label:
                del node[key]
                self._forget_labels((*path[:-1], key))
                sources.setdefault(source, []).append(key)
        for source, dropped in sources.items():
            names = ", ".join(dropped)
            self.notes.append(
                f"{label}: {format_path(path[:-1])}: '{path[-1]}' replaces settings of {source}. Dropped: {names}."
            )

    def _has_other_component(
        self, old: Mapping[str, Any], new: Mapping[str, Any], schema: SchemaNode, path: KeyPath, label: str
    ) -> bool:
        """Return True if a layer names another component than the lower ones, and note the settings that it drops."""
        # A component has settings of its own: those of the other one would be unknown keys.
        before, after = schema.part_name(old), new.get("name", schema.part_name(old))
        if after == before:
            return False
        dropped = [shorten_text(str(key), 100) for key in old if key != "name"]
        # What is no name is refused by the parser, and then nothing is replaced.
        if dropped and isinstance(after, str):
            source = self.find_label(path, "the recipe")
            self.notes.append(
                f"{label}: {format_path(path)}: '{shorten_text(after, 100)}' replaces '{before}' of {source}. Dropped "
                f"settings of '{before}': {shorten_list(dropped, 20)}."
            )
        return True

    # --- The command line ----------------------------------------------------------------------------------

    def _assign_node(self, node: Any, rest: KeyPath, value: Any, schema: SchemaNode, path: KeyPath, label: str) -> Any:
        if not rest:
            return self._merge_node(node, value, schema, path, label)
        step = rest[0]
        if schema.many:
            return self._assign_in_parts(node, rest, value, schema, path, label)
        if schema.part:
            node = {"name": node} if isinstance(node, str) else node
            # Another name drops the settings of the component before, which only merging does.
            if rest == ("name",):
                return self._merge_node(node, {"name": value}, schema, path, label)
        if isinstance(node, list):
            return self._assign_item(node, rest, value, SchemaNode(), path, label)
        if node is None:
            node = {}
            self.labels[path] = label
        if not isinstance(node, Mapping):
            raise UsageError(
                f"{format_path(path)} is no mapping and has no '{step}'. Write {format_path(path)}=VALUE instead."
            )
        key = str(step)
        inner = self._assign_node(node.get(key), rest[1:], value, schema.child(key, node), (*path, key), label)
        assigned = {**node, key: inner}
        self._drop_replaced(assigned, schema.replaced_settings(key, inner, node), (*path, key), label)
        return assigned

    def _assign_in_parts(
        self, node: Any, rest: KeyPath, value: Any, schema: SchemaNode, path: KeyPath, label: str
    ) -> Any:
        # An override may change a default component that no layer has written: its name is filled in first.
        if node is None and len(schema.default_names) > 1:
            node = [{"name": name} for name in schema.default_names]
        if isinstance(rest[0], int):
            items = node if isinstance(node, list) else [node]
            return self._assign_item(items, rest, value, schema.one_part(), path, label)
        if not isinstance(node, list):
            return self._assign_node(node, rest, value, schema.one_part(), path, label)
        if len(node) == 1:
            return [self._assign_node(node[0], rest, value, schema.one_part(), (*path, 0), label)]
        example = format_path((*path, 0, *rest))
        raise UsageError(f"{format_path(path)} has {len(node)} components. Write which one, as in {example}.")

    def _assign_item(
        self, node: list[Any], rest: KeyPath, value: Any, schema: SchemaNode, path: KeyPath, label: str
    ) -> Any:
        step = rest[0]
        if not isinstance(step, int) or step >= len(node):
            raise UsageError(
                f"{format_path(path)} has {len(node)} items and no {step!r}. Write a number from 0 to {len(node) - 1}."
            )
        item = self._assign_node(node[step], rest[1:], value, schema, (*path, step), label)
        return [*node[:step], item, *node[step + 1 :]]


MOST_FILLED = 100_000
"""Values and characters that the references of a recipe may become in all."""
MOST_FOLLOWED = 50
"""References that lead to each other."""


class References:
    """Fills in references `${a.b}` to other keys of the same recipe. Nothing else is evaluated."""

    def __init__(self, tree: Mapping[str, Any], schema: type[Any], where: Location) -> None:
        self.tree = tree
        self.where = where
        self.errors: list[BadConfig] = []
        self._root = SchemaNode(schema)
        self._filled: float = 0

    def fill_tree(self) -> dict[str, Any]:
        """Return the tree with all references filled in, and collect `errors`."""
        return {key: self._fill_node(value, (key,), ()) for key, value in self.tree.items()}

    def _fill_node(self, node: Any, path: KeyPath, pending: tuple[str, ...]) -> Any:
        # What no reference leads to is as long as the file, which has a limit of its own.
        self._filled += (len(node) + 1 if isinstance(node, str) else 1) if pending else 0
        if self._filled > MOST_FILLED:
            # Nothing is followed any more, so that references that double each other end at once.
            return node if self._filled == math.inf else self._refuse_growth(path)
        if isinstance(node, Mapping):
            return {key: self._fill_node(value, (*path, key), pending) for key, value in node.items()}
        if isinstance(node, list):
            return [self._fill_node(value, (*path, i), pending) for i, value in enumerate(node)]
        if isinstance(node, str) and "${" in node:
            return self._fill_text(node, path, pending)
        return node

    def _refuse_growth(self, path: KeyPath) -> str:
        self._add_error(
            path,
            f"the references become more than {MOST_FILLED:,} values and characters. Write fewer that double others.",
        )
        # Whatever else there is to say of references follows from this.
        self._filled = math.inf
        return ""

    def _add_error(self, path: KeyPath, message: str) -> str:
        if self._filled != math.inf:
            self.errors.append(BadConfig(f"{self.where(path)}: {message}"))
        return ""

    def _fill_text(self, text: str, path: KeyPath, pending: tuple[str, ...]) -> Any:
        # A reference alone keeps the type of its value. Within text it becomes text.
        whole = _REFERENCE.fullmatch(text)
        if whole:
            return self._look_up(whole[1], path, pending)
        if "${" in _REFERENCE.sub(" ", text):
            return self._add_error(
                path, f"{shorten_text(text)!r} is no plain reference. Write it like ${{train.steps}}."
            )

        def insert_value(match: re.Match[str]) -> str:
            value = self._look_up(match[1], path, pending)
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                return self._add_error(
                    path, f"{match[0]} is no text or number. Write the reference alone, without text around it."
                )
            return str(value)

        filled = _REFERENCE.sub(insert_value, text)
        if "${" in filled:
            return self._add_error(path, "the filled-in references form a new reference. Write the value itself.")
        return filled

    def _look_up(self, key: str, path: KeyPath, pending: tuple[str, ...]) -> Any:
        # `pending` holds the references that are being filled in, so a circle is found before it recurses for ever.
        if key in pending:
            return self._add_error(
                path, f"the references {' -> '.join((*pending, key))} form a circle. Write one of the values itself."
            )
        if len(pending) >= MOST_FOLLOWED:
            return self._add_error(
                path, f"more than {MOST_FOLLOWED} references lead to each other. Write the value itself."
            )
        if len(key) > _LONGEST_KEY:
            return self._add_error(path, f"${{{shorten_text(key, 100)}}} is no key. Write it like ${{train.steps}}.")
        node: Any = self.tree
        schema, keys = self._root, split_key(key)
        for place, step in enumerate(keys):
            if isinstance(node, Mapping) and str(step) in node:
                schema, node = schema.child(step, node), node[str(step)]
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                schema, node = schema.one_part(), node[step]
            else:
                return self._add_error(path, _unset_reference(keys, place, schema.current_key(step, node)))
        return self._fill_node(node, path, (*pending, key))


def _unset_reference(keys: KeyPath, place: int, current: Any) -> str:
    """Describe a reference that leads nowhere; `current` is the name that the key at `place` has now."""
    reference = f"${{{shorten_text(format_path(keys), 100)}}}"
    if current == keys[place]:
        return f"{reference} refers to a key that the recipe does not set. Set it, or write the value itself."
    renamed = format_path((*keys[:place], current, *keys[place + 1 :]))
    return f"in {reference} the key {keys[place]} is now called {current}. Write ${{{renamed}}}."
