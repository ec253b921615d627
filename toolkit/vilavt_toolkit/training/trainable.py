"""The weights that a stage trains, and the optimizer over them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from vilavt_toolkit.config.schema import StageSection
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, RunError, UsageError
from vilavt_toolkit.models.adapters import Adapters, add_adapters, find_linear_layers, is_adapter, list_adapted_layers
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_names import match_weights, name_without_adapter, part_of_weight
from vilavt_toolkit.training.parameter_groups import WeightRules, find_rules, split_groups

NamedParameter = tuple[str, nn.Parameter]


def select_trained(model: VisualChatModel, section: StageSection, key: str = "train") -> None:
    """Put a stage's adapters on a model, and exclude weights from training as its section says.

    Frozen weights get no gradient, and modules of them no dropout, and their running statistics are fixed. `key` is the
    name of the section. Raises BadConfig for a pattern that matches nothing, RunError for adapters of a checkpoint that
    are not the recipe's, and UsageError if nothing is left to train.
    """
    add_stage_adapters(model, section, key)
    frozen = match_weights(model, section.frozen, f"{key}.freeze")
    unfrozen = match_weights(model, section.unfreeze, f"{key}.unfreeze")
    layers = list_adapted_layers(model)
    adapted = {id(layer.get_base_layer().weight): name for name, layer in layers.items()}
    for pattern, weights in unfrozen.items():
        if found := [adapted[id(weight)] for weight in weights if id(weight) in adapted]:
            raise BadConfig(
                f"{key}.unfreeze: {pattern!r} holds the weight of {found[0]}, which has an adapter. Narrow the pattern."
            )
        if not all(weight.requires_grad for weight in weights):
            raise BadConfig(
                f"{key}.unfreeze: {pattern!r} holds weights that their own part freezes. Set `frozen` of that part."
            )
    # Adapters train whatever is frozen around them, and all else of a part with adapters is frozen.
    adapters = {id(weight) for name, weight in model.named_parameters() if is_adapter(name)}
    kept = adapters | {id(weight) for weights in unfrozen.values() for weight in weights}
    around = [part for part in model.parts().values() if not adapters.isdisjoint(map(id, part.parameters()))]
    for weight in itertools.chain(*frozen.values(), *(part.parameters() for part in around)):
        if id(weight) not in kept:
            weight.requires_grad_(False)
    if not trainable_parameters(model):
        raise UsageError(f"{key}.freeze leaves nothing to train. Take a part out of it.")
    _switch_off_frozen(model)


def add_stage_adapters(model: VisualChatModel, section: StageSection, key: str) -> None:
    """Put the section's adapters on a model, unless a checkpoint has brought them.

    Raises BadConfig for patterns that fit no layer, and RunError if the checkpoint has brought others.
    """
    wanted = None
    if (lora := section.lora) is not None:
        layers = find_linear_layers(model, lora.targets, f"{key}.lora.targets") if model.adapters is None else ()
        alpha = 2.0 * lora.rank if lora.alpha is None else lora.alpha
        wanted = Adapters(lora.rank, alpha, lora.dropout, lora.rslora, layers)
    if model.adapters is None:
        if wanted is not None:
            add_adapters(model, wanted)
    # Their layers follow from `targets`, which are compared before the checkpoint is loaded.
    elif wanted is None or replace(wanted, layers=model.adapters.layers) != model.adapters:
        raise RunError(f"The checkpoint has adapters of other settings. Resume with the same {key}.lora.")


def check_frozen_dtype(section: StageSection, precision: str, key: str = "train") -> None:
    """Raise BadConfig if frozen weights cannot be kept in the number format that a stage's section says."""
    if section.frozen_dtype != "same" and precision != "bf16-mixed":
        raise BadConfig(
            f"{key}.frozen_dtype {section.frozen_dtype} needs train.precision bf16-mixed, which computes with weights "
            "of two formats. Change either."
        )


def store_frozen(model: VisualChatModel, section: StageSection, precision: str, key: str = "train") -> None:
    """Keep frozen weights in the number format that a stage's section says; raises BadConfig.

    To be called after `select_trained`.
    """
    check_frozen_dtype(section, precision, key)
    if section.frozen_dtype == "same":
        return
    for weight in model.parameters():
        if not weight.requires_grad and weight.dtype == torch.float32:
            weight.data = weight.data.to(torch.bfloat16)
    for layer in list_adapted_layers(model).values():
        # Autocast brings inputs and adapters together. peft would first copy every input in float32.
        layer.cast_input_dtype_enabled = False


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
                f"{name_without_adapter(name)} is new in this stage and would be frozen at its random values. Take its "
                f"{part} out of {key}.freeze and {key}.lora.targets, start from a run with {key}.init_from, or set "
                f"{key}.freeze_new=true if that is meant."
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
    """Holds how one weight learns."""

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
