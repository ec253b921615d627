"""Stopping policy `model_decides`: the loop ends when the model answers."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import answered
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies


@dataclass(frozen=True)
class ModelDecidesConfig:
    """`model_decides` has no settings."""


@stopping_policies.register("model_decides", ModelDecidesConfig)
class ModelDecides(StoppingPolicy):
    """The loop ends when the model has written an answer."""

    def __init__(self, config: ModelDecidesConfig, width: int) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def tiny(cls) -> ModelDecidesConfig:
        """Return the (empty) settings."""
        return ModelDecidesConfig()

    def decide(self, state: LoopState) -> Decision:
        """Stop after an answer."""
        return Decision("stop", "answered") if answered(state) else GO_ON
