"""The wordings of dialogue `vilavt`: read from its data file, or from one that a recipe names, and filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.settings import did_you_mean

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "system": (),
    "before": (),
    "behind": (),
    "overview": ("features", "index"),
    "question": ("question",),
    "forced": ("question",),
    "response": ("regions",),
    "crop": ("features", "index"),
    "feedback": ("problem",),
    "demand": (),
}
"""Every text, and what must stand in it, once each, to be filled in."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def read_texts(template: str | None, own: Mapping[str, str | None]) -> dict[str, str]:
    """All texts: a setting's own, else the template's, else the usual; raises InputError, BadConfig."""
    found = dict(_usual())
    origins = dict.fromkeys(found, "")
    given = [] if template is None else [(f"template '{template}'", _read_file(template))]
    settings = {name: text for name, text in own.items() if text is not None}
    for origin, mapping in [*given, ("dialogue 'vilavt'", settings)]:
        found.update(mapping)
        origins.update(dict.fromkeys(mapping, origin))
    for name, text in found.items():
        _check(name, text, origins[name])
    return found


def filled(text: str, **values: object) -> str:
    """The text with `values` in their places, in one pass: what is filled in is never filled in again."""
    return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), text)


@cache
def _usual() -> Mapping[str, str]:
    text = (files("vilavt_components.dialogues") / "vilavt_template.yaml").read_text(encoding="utf-8")
    return _parsed(text, "vilavt_template.yaml")


def _read_file(template: str) -> Mapping[str, str]:
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(
            f"template '{template}' cannot be read ({error}); give the path of a YAML file of texts."
        ) from error
    return _parsed(text, template)


def _parsed(text: str, name: str) -> Mapping[str, str]:
    import yaml

    try:
        data: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"template '{name}' is not valid YAML ({' '.join(str(error).split())}); mend it.") from error
    if not isinstance(data, dict):
        raise BadConfig(f"template '{name}' must be a mapping of texts by name: {', '.join(REQUIRED)}.")
    for key, value in data.items():
        if key not in REQUIRED:
            raise BadConfig(f"template '{name}' has no text '{key}'.{did_you_mean(key, list(REQUIRED))}")
        if not isinstance(value, str):
            raise BadConfig(f"template '{name}': '{key}' must be a text, not {type(value).__name__}; quote it.")
    return data


def _check(name: str, text: str, origin: str) -> None:
    for placeholder in REQUIRED[name]:
        if text.count(f"{{{placeholder}}}") != 1:
            raise BadConfig(f"{origin}: text `{name}` must hold {{{placeholder}}} once; it says where that goes.")
