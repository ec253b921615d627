"""The texts of dialogue `vilavt`, from its own template or from one that a recipe names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.yaml_reading import SUFFIXES, find_excess, read_text
from vilavt_toolkit.errors import BadConfig, BadRecipe, InputError
from vilavt_toolkit.settings import did_you_mean
from vilavt_toolkit.utils.text import shorten_text

PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "system": (),
    "features_prefix": (),
    "features_suffix": (),
    "overview": ("features", "index"),
    "question": ("question",),
    "question_without_tool": ("question",),
    "response": ("regions",),
    "crop": ("features", "index"),
    "feedback": ("problem",),
    "demand": (),
}
"""Each text, and the placeholders that must be in it exactly once."""
_RENAMED = {"before": "features_prefix", "behind": "features_suffix", "forced": "question_without_tool"}
"""Texts by their names in earlier versions, as a template of a user may still have them."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def read_texts(template: str | None, own: Mapping[str, str | None]) -> dict[str, str]:
    """Return all texts: a setting's own, else the template's, else the default; raises InputError or BadConfig."""
    texts = dict(_default_texts())
    # An error names the place where a text was set, not the text alone.
    origins = dict.fromkeys(texts, "")
    given = [] if template is None else [(f"template '{template}'", _read_file(template))]
    settings = {name: text for name, text in own.items() if text is not None}
    for origin, mapping in [*given, ("dialogue 'vilavt'", settings)]:
        texts.update(mapping)
        origins.update(dict.fromkeys(mapping, origin))
    for name, text in texts.items():
        _check_placeholders(name, text, origins[name])
    return texts


def fill_text(text: str, **values: object) -> str:
    """Return the text with `values` for its placeholders.

    In one pass, so that braces in a question are not filled in again. A placeholder without a value stays as it is.
    """
    return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), text)


@cache
def _default_texts() -> Mapping[str, str]:
    text = (files("vilavt_components.dialogues") / "vilavt_template.yaml").read_text(encoding="utf-8")
    return _parse_texts(text, "vilavt_template.yaml")


def _read_file(template: str) -> Mapping[str, str]:
    # Errors quote what the file holds, so that no file of another kind is read as one.
    if Path(template).suffix not in SUFFIXES or Path(template).resolve().suffix not in SUFFIXES:
        raise BadConfig(f"template '{template}' is no .yaml file. Give the path of a YAML file of texts.")
    try:
        text = read_text(Path(template).expanduser(), f"template '{template}'")
    except BadRecipe as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        raise InputError(
            f"template '{template}' names a home folder that is not known. Write the whole path."
        ) from error
    if excess := find_excess(text):
        raise InputError(f"template '{template}' has {excess}. Give the path of a YAML file of texts.")
    return _parse_texts(text, template)


def _parse_texts(text: str, name: str) -> Mapping[str, str]:
    import yaml

    try:
        data: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"template '{name}' is not valid YAML ({shorten_text(' '.join(str(error).split()))}). Correct it."
        ) from error
    if not isinstance(data, dict):
        raise BadConfig(f"template '{name}' is no mapping of texts. Write lines like `demand: Answer now.`")
    for key, value in data.items():
        if key in _RENAMED:
            raise BadConfig(
                f"template '{name}': the text '{key}' is now called {_RENAMED[key]}. Write {_RENAMED[key]}."
            )
        if key not in PLACEHOLDERS:
            raise BadConfig(f"template '{name}' has no text '{key}'.{did_you_mean(key, list(PLACEHOLDERS))}")
        # YAML reads an unquoted `demand: no` or `demand: 7` as no text.
        if not isinstance(value, str):
            raise BadConfig(f"template '{name}': '{key}' must be a text, not {type(value).__name__}. Quote it.")
    return data


def _check_placeholders(name: str, text: str, origin: str) -> None:
    for placeholder in PLACEHOLDERS[name]:
        if text.count(f"{{{placeholder}}}") != 1:
            raise BadConfig(f"{origin}: text `{name}` must hold {{{placeholder}}} once. Write it where it is to go.")
