"""Stopping policy `max_turns`: after so many turns the answer is demanded."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import ending
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class MaxTurnsConfig:
    """Settings of stopping policy `max_turns`."""

    turns: int = setting(10, help="turns without an answer after which it is demanded", minimum=1)


@stopping_policies.register("max_turns", MaxTurnsConfig)
class MaxTurns(StoppingPolicy):
    """After so many turns, failed tool calls counted, the answer is demanded."""

    def __init__(self, config: MaxTurnsConfig, width: int) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def tiny(cls) -> MaxTurnsConfig:
        """Return settings that allow two turns."""
        return MaxTurnsConfig(turns=2)

    def decide(self, state: LoopState) -> Decision:
        """Demand the answer once the turns are used up."""
        if len(state.turns) < self.config.turns:
            return GO_ON
        return Decision(ending(state), f"{self.config.turns} turns are used up")
