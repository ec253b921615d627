"""What of a model is trained, and by which optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, UsageError
from vilavt_toolkit.models.model import VisualChatModel

Named = tuple[str, nn.Parameter]


def freeze(model: VisualChatModel, parts: Sequence[str], section: str = "train") -> None:
    """Exclude parts from training; their dropout is off and their running statistics stay. Raises UsageError.

    `section` is where the recipe names them.
    """
    modules: dict[str, nn.Module | None] = {
        "encoder": model.encoder.encoder,
        "modulator": model.encoder.modulators,
        "inquiry_encoder": model.encoder.inquiry_encoder,
        "projector": model.projector,
        "language_model": model.language_model,
        "stopping": model.stopping,
    }
    for part in parts:
        module = modules[part]
        if module is not None:
            module.requires_grad_(False).eval()
    if not trained(model):
        raise UsageError(f"{section}.freeze leaves nothing to train; take a part out of it.")


def trained(model: nn.Module) -> list[Named]:
    """The parameters that are trained, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def build_optimizer(optimizer: Optimizer, parameters: Iterable[Named], section: str = "train") -> torch.optim.Optimizer:
    """The optimizer of some parameters; raises BadConfig with the reason where torch refuses its settings."""
    try:
        return optimizer.build(parameters)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadConfig(f"the optimizer cannot be built ({reason}); change {section}.optimizer.") from error


def try_optimizer(optimizer: Optimizer, model: nn.Module, section: str = "train") -> None:
    """Build the optimizer over parameters of the model's names, but of one number each; raises BadConfig."""
    with torch.device("cpu"):
        small = [(name, nn.Parameter(torch.zeros([1] * weight.dim()))) for name, weight in trained(model)]
        build_optimizer(optimizer, small, section)
