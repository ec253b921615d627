"""The settings of a recipe that trade a training step's memory for time."""

from __future__ import annotations

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.models.model import VisualChatModel


def apply_memory_settings(model: VisualChatModel, section: TrainSection) -> None:
    """Make a model recompute, in the backward pass, what the recipe says, and offload activations; raises BadConfig.

    Plans do it too, and so see what it saves.
    """
    check_memory_settings(model, section)
    model.vision.gradient_checkpointing = int(section.gradient_checkpointing)
    model.language_model_checkpointing = int(section.language_model_checkpointing)
    model.offloads_activations = section.offload_activations


def check_memory_settings(model: VisualChatModel, section: TrainSection) -> None:
    """Raise BadConfig if layers are to be computed again of a language model that does not name them."""
    if section.language_model_checkpointing and not model.language_model.blocks:
        raise BadConfig(
            f"language model {type(model.language_model).__name__} names no layers in `blocks`, so none can be "
            "computed again. Set train.language_model_checkpointing=false."
        )
