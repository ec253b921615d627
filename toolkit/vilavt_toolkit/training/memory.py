"""The settings of a recipe that trade a training step's memory for time."""

from __future__ import annotations

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.models.model import VisualChatModel


def apply_memory_settings(model: VisualChatModel, section: TrainSection) -> None:
    """Make a model recompute, in the backward pass, what the recipe says. Plans do it too, and so see what it saves."""
    model.vision.gradient_checkpointing = section.gradient_checkpointing
