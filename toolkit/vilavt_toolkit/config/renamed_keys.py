"""Old names of recipe keys, as recipes and checkpoints of earlier versions have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.config.schema_node import SchemaNode
from vilavt_toolkit.registry.plugins import load_builtin


def rename_old_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain data with every old key under the name it has now; all else stays as it is.

    The schema and the components' configs say with `formerly=` what a key was called. A component that a plugin brings
    is renamed in only if that plugin has been loaded. A key is left alone where its new name is set beside it: the
    parser then refuses the old one. Needed for checkpoints, whose recipe.yaml nobody writes by hand.
    """
    load_builtin()
    renamed: dict[str, Any] = _rename_in(mapping, SchemaNode(Recipe))
    return renamed


def _rename_in(node: Any, schema: SchemaNode) -> Any:
    if schema.many:
        if isinstance(node, list | tuple):
            return [_rename_in(item, schema.one_part()) for item in node]
        return _rename_in(node, schema.one_part())
    if not isinstance(node, Mapping):
        return node
    renamed = {}
    for key, value in node.items():
        # Both names at once are a contradiction, which only the user can solve.
        name = schema.current_key(key, node)
        name = key if name in node else name
        renamed[name] = _rename_in(value, schema.child(name, node))
    return renamed
