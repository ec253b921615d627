"""Stopping policy `max_turns`: a limit on the number of turns."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import choose_ending
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class MaxTurnsConfig:
    """Settings of stopping policy `max_turns`."""

    turns: int = setting(10, help="number of turns after which the answer is demanded", minimum=1)


@stopping_policies.register("max_turns", MaxTurnsConfig)
class MaxTurns(StoppingPolicy):
    """Demands the answer after a number of turns; failed tool calls count."""

    def __init__(self, config: MaxTurnsConfig, width: int) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def tiny(cls) -> MaxTurnsConfig:
        """Return settings that allow two turns."""
        return MaxTurnsConfig(turns=2)

    def decide(self, state: LoopState) -> Decision:
        """Demand the answer once the turns are used up; stop if the last turn already answers."""
        if len(state.turns) < self.config.turns:
            return GO_ON
        return Decision(choose_ending(state), f"{self.config.turns} turns are used up")
