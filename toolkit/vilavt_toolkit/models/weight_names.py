"""Names of a model's weights and layers, and the patterns by which recipes choose them.

A pattern is the name of a part (`encoder`), or a name in which `*` stands for anything, dots included. A pattern that
names a layer chooses all that lies in it: `language_model.model.layers.0` is that layer's weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import translate

from torch import nn

from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.text import shorten_text

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_BASE = ".base_layer"
"""The name under which an adapted layer holds the layer that it adapts."""
_MOST_NEAREST = 3
_LEAST_LIKENESS = 0.6


def name_without_adapter(name: str) -> str:
    """Return the name that a weight has in the model without adapters."""
    return name.replace(_BASE, "")


def collapse_numbers(name: str) -> str:
    """Return the pattern of a name: every number in it is a `*`."""
    return _NUMBER.sub("*", name)


def part_of_weight(model: VisualChatModel) -> dict[int, str]:
    """Return the kind of part of every parameter, by the parameter's id; what parts share is of the first."""
    found: dict[int, str] = {}
    for kind, module in model.parts().items():
        for weight in module.parameters():
            found.setdefault(id(weight), kind)
    return found


def is_part(pattern: str) -> bool:
    """Return True if a pattern is the name of a kind of part."""
    return pattern in PARTS_WITH_WEIGHTS


def match_weights(model: VisualChatModel, patterns: Sequence[str], key: str) -> dict[str, list[nn.Parameter]]:
    """Return the weights that each pattern of the recipe's `key` chooses; raises BadConfig for one without any.

    The name of a part that this model does not have, or that has no weights, chooses none.
    """
    names: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names[name_without_adapter(name)] = weight
    parts = model.parts()
    found = {}
    for pattern in patterns:
        if is_part(pattern):
            # Parts do not say where they lie: the encoder is `vision.backbone`.
            module = next((each for kind, each in parts.items() if kind == pattern), None)
            found[pattern] = [] if module is None else list(module.parameters())
            continue
        chosen = {id(names[name]): names[name] for name in match_names(names, pattern)}
        if not chosen:
            raise BadConfig(
                f"{shorten_text(pattern)!r} in {key} matches no weight.{suggest_names(pattern, [*parts, *names])}"
            )
        found[pattern] = list(chosen.values())
    return found


def match_names(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that a pattern matches as a whole, or in whose beginning, up to a dot, it does."""
    whole, inside = re.compile(translate(pattern)), re.compile(translate(f"{pattern}.*"))
    return [name for name in names if whole.match(name) or inside.match(name)]


def suggest_names(pattern: str, names: Iterable[str], wider: bool = True) -> str:
    """Return a sentence with the names nearest to a pattern, for an error, and where all names can be read.

    With `wider`, modules that the named ones lie in may be meant too.
    """
    where = " `vilavt check RECIPE --names` prints all names."
    wanted = collapse_numbers(pattern)
    # Layers are alike, so that one pattern stands for all of them. A pattern may name a weight or a layer around it.
    shown = map(collapse_numbers, names)
    candidates = {each for name in shown for each in (_list_wider(name) if wider else [name])}
    likeness = {each: max(_likeness(wanted, each), _likeness(_last(wanted), _last(each))) for each in candidates}
    close = sorted(each for each in likeness if likeness[each] >= _LEAST_LIKENESS)
    close.sort(key=lambda each: (-likeness[each], len(each)))
    return (f" Nearest: {', '.join(close[:_MOST_NEAREST])}." if close else "") + where


def _list_wider(name: str) -> list[str]:
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps) + 1)]


def _last(pattern: str) -> str:
    """Return the last step of a name that is no number."""
    return next((step for step in reversed(pattern.split(".")) if step.strip("*")), pattern).strip("*")


def _likeness(one: str, other: str) -> float:
    # Comparing takes time that grows with the square of the length, and no name is that long.
    return SequenceMatcher(None, one[:200], other[:200]).ratio()


def refuse_overlap(chosen: Mapping[str, Iterable[int]], names: Mapping[int, str], key: str) -> None:
    """Raise BadConfig if two patterns of the recipe's `key` choose the same thing, known by id."""
    owners: dict[int, str] = {}
    for pattern, ids in chosen.items():
        for each in ids:
            if owners.setdefault(each, pattern) != pattern:
                raise BadConfig(
                    f"{shorten_text(owners[each])!r} and {shorten_text(pattern)!r} in {key} both match "
                    f"{names.get(each, 'the same weight')}. Narrow one of them, or take it out."
                )
