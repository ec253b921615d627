"""Stopping policy `any_of`: the dialogue ends when one of several policies says so."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.composition import Composed, example_parts
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState
from vilavt_toolkit.registry import Part, stopping_policies
from vilavt_toolkit.settings import part


@dataclass(frozen=True)
class AnyOfConfig:
    """Settings of stopping policy `any_of`."""

    policies: list[Part] = part("stopping", "policies, of which the first that does not go on decides", many=True)


@stopping_policies.register("any_of", AnyOfConfig)
class AnyOf(Composed):
    """Lets the first of several policies that does not go on decide, as a recipe's list does; for use in `all_of`."""

    def __init__(self, config: AnyOfConfig, width: int) -> None:
        super().__init__(config.policies, width)

    @classmethod
    def tiny(cls) -> AnyOfConfig:
        """Return settings of two policies."""
        return AnyOfConfig(example_parts())

    def decide(self, state: LoopState) -> Decision:
        """Return the first decision that does not go on."""
        # A generator: the policies after the one that decides are not asked.
        decisions = (policy.decide(state) for policy in self.member_policies())
        return next((decision for decision in decisions if decision.action != "go_on"), GO_ON)
