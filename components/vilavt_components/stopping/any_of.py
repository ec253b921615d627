"""Stopping policy `any_of`: the dialogue ends when one of several policies says so."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.composition import Composed, examples
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState
from vilavt_toolkit.registry import Part, stopping_policies
from vilavt_toolkit.settings import part


@dataclass(frozen=True)
class AnyOfConfig:
    """Settings of stopping policy `any_of`."""

    policies: list[Part] = part("stopping", "the first of them that does not say go on decides", many=True)


@stopping_policies.register("any_of", AnyOfConfig)
class AnyOf(Composed):
    """The first of several policies that does not say go on decides, as in a recipe's list; for use inside `all_of`."""

    def __init__(self, config: AnyOfConfig, width: int) -> None:
        super().__init__(config.policies, width)

    @classmethod
    def tiny(cls) -> AnyOfConfig:
        """Return settings of two policies."""
        return AnyOfConfig(examples())

    def decide(self, state: LoopState) -> Decision:
        """What the first policy says that does not go on."""
        said = (policy.decide(state) for policy in self.parts())
        return next((decision for decision in said if decision.action != "go_on"), GO_ON)
