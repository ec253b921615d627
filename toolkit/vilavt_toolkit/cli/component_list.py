"""`vilavt list`: the components that a recipe can name, with their settings. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.config.parsing import describe_type, to_plain, typed_fields
from vilavt_toolkit.errors import UnknownName
from vilavt_toolkit.registry import REGISTRIES, Entry, Registry
from vilavt_toolkit.settings import default_of, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_DEFAULT = 80


def find_registries(kind: str | None) -> list[Registry[Any]]:
    """Return the registry of a kind, or all of them without one; raises UnknownName.

    A kind may be written as errors write it: `modulators`, `stopping policy`.
    """
    if kind is None:
        return list(REGISTRIES.values())
    # Errors and headings write labels and plurals, which users copy.
    wanted = kind.replace("_", " ").replace("-", " ").lower()
    for registry in REGISTRIES.values():
        if wanted in (registry.kind.replace("_", " "), registry.label, registry.plural):
            return [registry]
    known = ", ".join(REGISTRIES)
    raise UnknownName(f"no kind of component named '{kind}'.{did_you_mean(kind, tuple(REGISTRIES))}\n  kinds: {known}")


def print_component(console: Console, registry: Registry[Any], name: str) -> None:
    """Print one component with its settings; raises UnknownName."""
    _print_entry(console, registry.get(name))


def print_components(console: Console, registry: Registry[Any]) -> None:
    """Print the components of one kind: name, summary, origin, and each setting with type, default and help."""
    console.print(f"{registry.plural.capitalize()} (kind: {registry.kind})", style="bold underline")
    for entry in registry.entries():
        _print_entry(console, entry)
    if not registry.names():
        console.print("  none\n")


def _print_entry(console: Console, entry: Entry[Any]) -> None:
    from rich.table import Table

    console.print(f"  {entry.name}", style="bold", end="")
    console.print(f"  {entry.summary}  [{entry.origin}]")
    # A grid without borders aligns the settings, and still prints one line a setting into a pipe.
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    for name, (f, annotation) in typed_fields(entry.config).items():
        table.add_row(
            f"      {name}", f"{_format_type(f, annotation)}, {_format_default(f)}: {f.metadata.get('help', '')}"
        )
    if table.row_count:
        console.print(table)
    console.print()


def _format_type(f: Field[Any], annotation: Any) -> str:
    if "part" not in f.metadata:
        return describe_type(annotation)
    return f"{f.metadata['part']}{', one or a list' if f.metadata['many'] else ''}"


def _format_default(f: Field[Any]) -> str:
    """Write a default as a recipe would, cut where it is long."""
    # The default of a component is a name that is looked up when a recipe is read: the field itself holds None.
    if names := f.metadata.get("default_names"):
        return f"default {', '.join(names)}"
    default = default_of(f)
    if default is MISSING:
        return "required"
    text = json.dumps(to_plain(default), ensure_ascii=False)
    return f"default {text if len(text) <= _LONGEST_DEFAULT else text[: _LONGEST_DEFAULT - 3] + '...'}"
