"""Stopping policy `confidence`: stop looking once the answer that the model would give is probable enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class ConfidenceConfig:
    """Settings of stopping policy `confidence`."""

    threshold: float = setting(0.9, help="least probability of the probed answer", minimum=0, maximum=1)
    probability_of: Literal["answer", "turn"] = setting(
        "answer",
        help="probability of the answer's own tokens, or of the whole turn with its thought",
        formerly=("of",),
    )
    min_looks: int = setting(
        0, help="number of looks before the answer may be demanded", minimum=0, formerly=("after",)
    )


@stopping_policies.register("confidence", ConfidenceConfig)
class Confidence(StoppingPolicy):
    """Probes the answer at each look, and demands it once its probability reaches a threshold."""

    needs = frozenset({"probe"})

    def __init__(self, config: ConfidenceConfig, width: int) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def tiny(cls) -> ConfidenceConfig:
        """Return the defaults."""
        return ConfidenceConfig()

    def decide(self, state: LoopState) -> Decision:
        """Demand the answer if the last probe is an answer that is probable enough."""
        if not state.before_turn or len(state.probes) <= self.config.min_looks or state.probes[-1].answer is None:
            return GO_ON
        # One probe per look so far: `min_looks` of them are only observed.
        probe, of = state.probes[-1], self.config.probability_of
        found = probe.probability if of == "answer" else probe.turn_probability
        # Not `found < threshold`: that is False for NaN, which would then count as confident.
        if not found >= self.config.threshold:
            return GO_ON
        what = "the probed answer" if of == "answer" else "the probed turn"
        return Decision("answer", f"{what} has a probability of {found:.3f}, at least {self.config.threshold:g}")
