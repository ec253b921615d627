"""Saved evaluations, read and checked: a damaged file is named before anything of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.renamed_keys import rename_old_keys
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.evaluation.folder import (
    ITEMS_FILE,
    SUMMARY_FILE,
    describe_missing_evaluation,
    find_evaluation_folder,
)
from vilavt_toolkit.evaluation.statistics import Estimate
from vilavt_toolkit.utils.files import COST_FILE, read_plain_text, require_no_device
from vilavt_toolkit.utils.json_objects import load_unambiguous
from vilavt_toolkit.utils.text import format_value


class _Damage(Exception):
    """Tells what is wrong with a saved value, and where."""


def read_summary(run: Path) -> dict[str, Any]:
    """Read the summary of a run's evaluation; raises RunError if there is none or it is damaged."""
    file = find_evaluation_folder(run) / SUMMARY_FILE
    try:
        summary: dict[str, Any] = _require(load_unambiguous(read_plain_text(file)), dict, "the file")
        _check_summary(summary)
    except FileNotFoundError as error:
        raise RunError(describe_missing_evaluation(run)) from error
    except (OSError, ValueError, RecursionError, _Damage) as error:
        raise RunError(f"{file} cannot be read ({error}). Evaluate the run again: vilavt eval {run}") from error
    if "format" not in summary:
        # Written under checkpoint format 1, with the keys of its time. Under today's, its questions can be compared.
        summary["recipe"] = rename_old_keys(summary["recipe"])
    return summary


def read_items(run: Path) -> Iterator[dict[str, Any]]:
    """Read the items of a run's evaluation one by one; raises RunError if there are none or one is damaged."""
    file = find_evaluation_folder(run) / ITEMS_FILE
    try:
        require_no_device(file)
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                item = _require(load_unambiguous(line), dict, f"line {number}")
                for key, kind in (("arm", str), ("id", str), ("tags", dict), ("calls", int), ("score", float)):
                    _require(item.get(key), kind, f"line {number}: {key}")
                # Intervals are over groups, whose tag is a key of a mapping.
                if isinstance(item["tags"].get("group"), list | dict):
                    raise _Damage(f"line {number}: tags.group must be a text or a number")
                yield item
    except FileNotFoundError as error:
        raise RunError(describe_missing_evaluation(run)) from error
    except (OSError, ValueError, RecursionError, _Damage) as error:
        raise RunError(f"{file} cannot be read ({error}). Evaluate the run again: vilavt eval {run}") from error


def read_cost(run: Path) -> dict[str, Any]:
    """Read the cost of a run's training; raises RunError if there is none or it is damaged."""
    file = run / COST_FILE
    try:
        cost: dict[str, Any] = _require(load_unambiguous(read_plain_text(file)), dict, "the file")
        for name, count in _require(cost.get("parameters"), dict, "parameters").items():
            _require(count, float, f"parameters.{name}")
        _require(cost["parameters"].get("encoder"), float, "parameters.encoder")
        _require(cost.get("seconds_per_step"), float, "seconds_per_step")
    except (OSError, ValueError, RecursionError, _Damage) as error:
        raise RunError(
            f"{file} cannot be read ({error}). `vilavt train` writes it when a run ends. Train {run} to its end."
        ) from error
    return cost


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raise _Damage unless the summary has all that tables are made of."""
    for name, arm in _require(summary.get("arms"), dict, "arms").items():
        where = f"arms.{name}"
        for subset, estimate in _require(_require(arm, dict, where).get("accuracy"), dict, f"{where}.accuracy").items():
            _check_estimate(estimate, f"{where}.accuracy.{subset}")
    for number, row in enumerate(_require(summary.get("differences"), list, "differences")):
        where = f"differences[{number}]"
        for key in ("first", "second", "subset"):
            _require(_require(row, dict, where).get(key), str, f"{where}.{key}")
        _check_estimate(row, where)
    recipe = _require(summary.get("recipe"), dict, "recipe")
    for section in ("task", "eval", "model"):
        _require(recipe.get(section), dict, f"recipe.{section}")
    encoder, modulators = recipe["model"].get("encoder"), recipe["model"].get("modulator")
    _check_part(encoder, "recipe.model.encoder")
    # A recipe may name one modulator or a list of them.
    for each in modulators if isinstance(modulators, list) else [modulators]:
        _check_part(each, "recipe.model.modulator")
    _require(summary.get("step"), int, "step")
    _require(summary.get("seed"), int, "seed")
    for name, version in _require(summary.get("versions"), dict, "versions").items():
        _require(version, str, f"versions.{name}")


def _check_part(value: Any, where: str) -> None:
    _require(_require(value, dict, where).get("name"), str, f"{where}.name")


def _check_estimate(value: Any, where: str) -> None:
    for field in fields(Estimate):
        kind = int if field.name in ("items", "clusters") else float
        _require(_require(value, dict, where).get(field.name), kind, f"{where}.{field.name}")


def _require(value: Any, kind: type[Any], where: str) -> Any:
    """Return a value of a kind, `float` for any number of a sensible size; raises _Damage that says where it stands."""
    wanted: Any = (int, float) if kind is float else kind
    # JSON true is an int to Python, and NaN a number.
    is_number = kind in (int, float) and isinstance(value, int | float)
    if not isinstance(value, wanted) or isinstance(value, bool) or (is_number and not -_LARGEST < value < _LARGEST):
        raise _Damage(f"{where} is {format_value(value)}, and must be {_NAMES[kind]}")
    return value


_LARGEST = 1e15
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
