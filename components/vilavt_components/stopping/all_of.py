"""Stopping policy `all_of`: the dialogue ends when all of several policies say so at once."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.composition import Composed, examples
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState
from vilavt_toolkit.registry import Part, stopping_policies
from vilavt_toolkit.settings import part


@dataclass(frozen=True)
class AllOfConfig:
    """Settings of stopping policy `all_of`."""

    policies: list[Part] = part("stopping", "the policies that must agree", many=True)


@stopping_policies.register("all_of", AllOfConfig)
class AllOf(Composed):
    """The answer is demanded when all of several policies end the dialogue at once; it stops when all would stop."""

    def __init__(self, config: AllOfConfig, width: int) -> None:
        super().__init__(config.policies, width)

    @classmethod
    def tiny(cls) -> AllOfConfig:
        """Return settings of two policies."""
        return AllOfConfig(examples())

    def decide(self, state: LoopState) -> Decision:
        """Go on while one of them does; a call is left out only where all would leave it out."""
        said = self.decisions(state)
        if any(decision.action == "go_on" for decision in said):
            return GO_ON
        stops = all(decision.action == "stop" for decision in said)
        why = " and ".join(decision.why for decision in said)
        return Decision("stop" if stops else "answer", why, call=any(decision.call for decision in said))
