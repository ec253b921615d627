"""Learning rate and weight decay of every trained weight: the groups of an optimizer, split as a recipe says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vilavt_toolkit.config.learning_schema import Rate
from vilavt_toolkit.config.schema import StageSection
from vilavt_toolkit.contracts.optimizer import DECAYS
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_names import is_part, match_weights, refuse_overlap

_NORM = re.compile(r"norm(act)?([123]d)?$", re.IGNORECASE)
"""The end of the names of classes that are norms, as transformers and timm call theirs."""
_BIAS = re.compile(r"(^|_)bias(es)?(_|$)")
"""A parameter that is a bias: `bias`, `q_bias`, `relative_position_bias_table`."""


@dataclass(frozen=True)
class WeightRules:
    """Holds what a recipe says of single weights, by the names that `named_parameters` gives."""

    rates: Mapping[str, Rate] = field(default_factory=dict)
    undecayed: frozenset[str] = frozenset()
    """Weights of norms, and biases: decay would pull a norm's scale towards 0."""


def find_rules(model: VisualChatModel, section: StageSection, key: str) -> WeightRules:
    """Return the rules of a stage, whose section in the recipe is `key`, for a model's weights; raises BadConfig."""
    chosen = match_weights(model, list(section.rates), f"{key}.rates")
    names = {id(weight): name for name, weight in model.named_parameters()}
    ids = {pattern: [id(weight) for weight in weights] for pattern, weights in chosen.items()}
    # A part is a default for its weights. Of two patterns neither would come first.
    for of_parts in (True, False):
        refuse_overlap({each: ids[each] for each in ids if is_part(each) is of_parts}, names, f"{key}.rates")
    rates = {
        names[weight]: section.rates[pattern]
        for pattern in sorted(ids, key=is_part, reverse=True)
        for weight in ids[pattern]
    }
    return WeightRules(rates, frozenset(_list_undecayed(model)))


def _list_undecayed(model: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of norms, and of biases."""
    for prefix, module in model.named_modules():
        is_norm = _NORM.search(type(module).__name__) is not None
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or _BIAS.search(name):
                yield f"{prefix}.{name}" if prefix else name


def split_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], rules: WeightRules, key: str = "train"
) -> None:
    """Split the groups of a new optimizer so that each has one learning rate and one weight decay; raises BadConfig.

    `names` gives the name of every weight in it by the weight's id. Other settings of a group stay those that the
    optimizer chose. A group of which nothing differs stays as it is.
    """
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        split: dict[tuple[float, float | None], list[Any]] = {}
        for weight in group["params"]:
            name = names[id(weight)]
            rate = rules.rates.get(name, _NOTHING)
            lr = group["lr"] if rate.lr is None else rate.lr
            decay = _choose_decay(group, weight, rate.weight_decay, name in rules.undecayed, key)
            split.setdefault((lr, decay), []).append(weight)
        for (lr, decay), weights in split.items():
            own = {} if decay is None else {"weight_decay": decay}
            groups.append({**group, "params": weights, "lr": lr, **own})
    # In place, since an optimizer that wraps another may share its list.
    optimizer.param_groups[:] = groups


@dataclass(frozen=True)
class _Nothing:
    """A rate that sets nothing, which a recipe may not write."""

    lr: float | None = None
    weight_decay: float | None = None


_NOTHING = _Nothing()


def _choose_decay(
    group: Mapping[str, Any], weight: torch.Tensor, wanted: float | None, is_undecayed: bool, key: str
) -> float | None:
    """Return the weight decay of a weight in an optimizer's group; None for an optimizer that knows none."""
    if "weight_decay" not in group:
        if wanted:
            raise BadConfig(f"{key}.optimizer has no weight decay, which {key}.rates sets. Take weight_decay out.")
        return None
    if is_undecayed:
        return 0.0
    if wanted is None:
        return float(group["weight_decay"])
    # An optimizer that does not say which weights it decays is taken to decay matrices.
    return wanted if group.get(DECAYS, weight.dim() > 1) else 0.0
