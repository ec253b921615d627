"""Stopping policy `all_of`: the dialogue ends when all of several policies say so at once."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.composition import Composed, example_parts
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState
from vilavt_toolkit.registry import Part, stopping_policies
from vilavt_toolkit.settings import part


@dataclass(frozen=True)
class AllOfConfig:
    """Settings of stopping policy `all_of`."""

    policies: list[Part] = part("stopping", "policies that must agree", many=True)


@stopping_policies.register("all_of", AllOfConfig)
class AllOf(Composed):
    """Demands the answer when all of several policies end the dialogue at once; stops if all of them would stop."""

    def __init__(self, config: AllOfConfig, width: int) -> None:
        super().__init__(config.policies, width)

    @classmethod
    def tiny(cls) -> AllOfConfig:
        """Return settings of two policies."""
        return AllOfConfig(example_parts())

    def decide(self, state: LoopState) -> Decision:
        """Go on while one policy goes on; drop the call only if all policies would drop it."""
        decisions = self.collect_decisions(state)
        if any(decision.action == "go_on" for decision in decisions):
            return GO_ON
        # The milder ending holds if they differ: demanding the answer still gives one, stopping would not.
        stops = all(decision.action == "stop" for decision in decisions)
        reasons = " and ".join(decision.why for decision in decisions)
        return Decision(
            "stop" if stops else "answer",
            reasons,
            carry_out_call=any(decision.carry_out_call for decision in decisions),
        )
