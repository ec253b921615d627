"""The trainable parameters of a model, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, UsageError
from vilavt_toolkit.models.model import VisualChatModel

NamedParameter = tuple[str, nn.Parameter]


def freeze_parts(model: VisualChatModel, parts: Sequence[str], section: str = "train") -> None:
    """Exclude parts from training: no gradient, no dropout, and fixed running statistics.

    `section` is the recipe's section that names them. Raises UsageError if nothing is left to train.
    """
    for kind, module in model.parts().items():
        if kind in parts:
            module.requires_grad_(False).eval()
    if not trainable_parameters(model):
        raise UsageError(f"{section}.freeze leaves nothing to train. Take a part out of it.")


def trainable_parameters(model: nn.Module) -> list[NamedParameter]:
    """Return the parameters that get a gradient, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def build_optimizer(
    optimizer: Optimizer, parameters: Iterable[NamedParameter], section: str = "train"
) -> torch.optim.Optimizer:
    """Build the torch optimizer of some parameters; raises BadConfig with the reason if torch refuses its settings."""
    try:
        return optimizer.build(parameters)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadConfig(f"the optimizer cannot be built ({reason}). Change {section}.optimizer.") from error


def try_optimizer(optimizer: Optimizer, model: nn.Module, section: str = "train") -> None:
    """Build the optimizer once to see that it can be built; raises BadConfig."""
    # `vilavt check` has a model without memory. Parameters of its names and dimensions, one number each, are enough:
    # optimizers choose their groups by name and dimension.
    with torch.device("cpu"):
        small = [(name, nn.Parameter(torch.zeros([1] * weight.dim()))) for name, weight in trainable_parameters(model)]
        build_optimizer(optimizer, small, section)
