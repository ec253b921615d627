"""The schema of one place in a recipe: a section, a component, a list of components, or plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from vilavt_toolkit.config.parsing import typed_fields
from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.settings import default_of


@dataclass(frozen=True)
class SchemaNode:
    """Says what may stand at one place of a recipe.

    A place is a section (`section`), a component of a kind (`part`), a list of these (`many`), or plain data, where
    all fields are empty. What may stand inside a component depends on the name that the recipe gives there, so the
    methods take the recipe's own data at the place, `node`.
    """

    section: type[Any] | None = None
    part: str = ""
    many: bool = False
    default_names: tuple[str, ...] = ()

    @classmethod
    def from_field(cls, f: Field[Any], annotation: Any) -> SchemaNode:
        """Read the node from a field of a config dataclass and its resolved type."""
        if "part" in f.metadata:
            return cls(None, f.metadata["part"], f.metadata["many"], f.metadata["default_names"] or ())
        # `RLSection | None` is a section too: null only leaves it out.
        arms = [arm for arm in (get_args(annotation) or (annotation,)) if isinstance(arm, type) and is_dataclass(arm)]
        return cls(arms[0] if arms and get_origin(annotation) in (None, Union, UnionType) else None)

    def one_part(self) -> SchemaNode:
        """Return the node of one component of a list."""
        return SchemaNode(None, self.part, False, self.default_names if len(self.default_names) == 1 else ())

    def settings(self, node: Any) -> dict[str, tuple[Field[Any], Any]]:
        """Return the fields known here, with their types; in a component, those of the one that `node` names."""
        section = self.section
        if self.part:
            name = self.part_name(node)
            registry = REGISTRIES[self.part]
            section = registry.get(name).config if name in registry else None
        return typed_fields(section) if section else {}

    def child(self, key: Any, node: Any) -> SchemaNode:
        """Return the node under `key`; plain data where the key is unknown."""
        known = self.settings(node)
        return SchemaNode.from_field(*known[key]) if key in known else SchemaNode()

    def current_key(self, key: Any, node: Any) -> Any:
        """Return the name that a setting has now, given one it had in an earlier version; other keys unchanged."""
        known = self.settings(node)
        if key in known:
            return key
        return next((name for name, (f, _) in known.items() if key in f.metadata.get("formerly", ())), key)

    def replaced_settings(self, key: Any, value: Any, node: Mapping[str, Any]) -> list[str]:
        """Return the settings of `node` that give way to `key`, which was not set before."""
        known = self.settings(node)

        def is_set(name: str, value: Any) -> bool:
            return value is not None and value != default_of(known[name][0])

        if key not in known or not is_set(key, value) or is_set(key, node.get(key)):
            return []
        others = known[key][0].metadata.get("replaces", ())
        return [other for other in others if other in known and is_set(other, node.get(other))]

    def part_name(self, node: Any) -> Any:
        """Return the name of a component: the one that `node` gives, or the default."""
        default = self.default_names[0] if len(self.default_names) == 1 else None
        if isinstance(node, str):
            return node
        return node.get("name", default) if isinstance(node, Mapping) else default
