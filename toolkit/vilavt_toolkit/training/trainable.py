"""The weights that a stage trains, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_toolkit.config.schema import StageSection
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, UsageError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_names import match_weights, part_of_weight
from vilavt_toolkit.training.parameter_groups import WeightRules, find_rules, split_groups

NamedParameter = tuple[str, nn.Parameter]


def select_trained(model: VisualChatModel, section: StageSection, key: str = "train") -> None:
    """Exclude weights from training as a stage's section says: no gradient, no dropout, fixed running statistics.

    `key` is the name of the section. Raises BadConfig for a pattern that matches nothing, and UsageError if nothing is
    left to train.
    """
    frozen = match_weights(model, section.frozen, f"{key}.freeze")
    unfrozen = match_weights(model, section.unfreeze, f"{key}.unfreeze")
    for pattern, weights in unfrozen.items():
        if not all(weight.requires_grad for weight in weights):
            raise BadConfig(
                f"{key}.unfreeze: {pattern!r} holds weights that their own part freezes. Set `frozen` of that part."
            )
    kept = {id(weight) for weights in unfrozen.values() for weight in weights}
    for weight in (weight for weights in frozen.values() for weight in weights):
        if id(weight) not in kept:
            weight.requires_grad_(False)
    if not trainable_parameters(model):
        raise UsageError(f"{key}.freeze leaves nothing to train. Take a part out of it.")
    _switch_off_frozen(model)


def _switch_off_frozen(module: nn.Module) -> None:
    """Put every module whose weights are all frozen into evaluation mode, with all that lies in it."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        return
    for child in module.children():
        _switch_off_frozen(child)


def refuse_frozen_new(model: VisualChatModel, section: StageSection, new: Collection[str], key: str = "train") -> None:
    """Raise BadConfig if weights of parts `new`, which are drawn at random, would stay so unless the recipe allows it.

    To be called after `select_trained`.
    """
    if section.freeze_new:
        return
    parts = part_of_weight(model)
    for name, weight in model.named_parameters():
        part = parts.get(id(weight))
        if part in new and not weight.requires_grad:
            raise BadConfig(
                f"{name} is new in this stage and would be frozen at its random values. Take its {part} out of "
                f"{key}.freeze, start from a run with {key}.init_from, or set {key}.freeze_new=true if that is meant."
            )


def trainable_parameters(model: nn.Module) -> list[NamedParameter]:
    """Return the parameters that get a gradient, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def build_optimizer(
    optimizer: Optimizer, parameters: Iterable[NamedParameter], key: str = "train", rules: WeightRules | None = None
) -> torch.optim.Optimizer:
    """Build the torch optimizer of some parameters, its groups split by `rules`.

    Raises BadConfig with the reason if torch refuses its settings.
    """
    named = list(parameters)
    try:
        built = optimizer.build(named)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadConfig(f"the optimizer cannot be built ({reason}). Change {key}.optimizer.") from error
    split_groups(built, {id(weight): name for name, weight in named}, rules or WeightRules(), key)
    return built


@dataclass(frozen=True)
class WeightRate:
    """How one weight learns."""

    lr: float
    weight_decay: float


def try_optimizer(
    optimizer: Optimizer, model: VisualChatModel, section: StageSection, key: str = "train"
) -> dict[str, WeightRate]:
    """Build the optimizer once to see that it can be built; return how each trained weight learns. Raises BadConfig."""
    rules = find_rules(model, section, key)
    # `vilavt check` has a model without memory. Parameters of its names and dimensions, one number each, are enough:
    # optimizers choose their groups by name and dimension.
    with torch.device("cpu"):
        small = [(name, nn.Parameter(torch.zeros([1] * weight.dim()))) for name, weight in trainable_parameters(model)]
        built = build_optimizer(optimizer, small, key, rules)
    names = {id(weight): name for name, weight in small}
    return {
        names[id(weight)]: WeightRate(group["lr"], group.get("weight_decay", 0.0))
        for group in built.param_groups
        for weight in group["params"]
    }
