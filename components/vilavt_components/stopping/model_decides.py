"""Stopping policy `model_decides`: the loop ends when the model answers."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import has_answered
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies


@dataclass(frozen=True)
class ModelDecidesConfig:
    """The empty settings of stopping policy `model_decides`."""


@stopping_policies.register("model_decides", ModelDecidesConfig)
class ModelDecides(StoppingPolicy):
    """Stops when the model has written an answer, and never demands one."""

    def __init__(self, config: ModelDecidesConfig, width: int) -> None:
        super().__init__()

    @classmethod
    def tiny(cls) -> ModelDecidesConfig:
        """Return the empty settings."""
        return ModelDecidesConfig()

    def decide(self, state: LoopState) -> Decision:
        """Stop after an answer."""
        return Decision("stop", "answered") if has_answered(state) else GO_ON
