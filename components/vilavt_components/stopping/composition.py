"""Stopping policies that are made of others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vilavt_toolkit.contracts import Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import Part, stopping_policies


class Composed(StoppingPolicy):
    """Holds policies, needs what any of them needs, and learns what they learn."""

    def __init__(self, parts: Sequence[Part], width: int) -> None:
        super().__init__()
        self.policies = nn.ModuleList(part.entry.cls(part.config, width) for part in parts)
        self.needs = frozenset().union(*(policy.needs for policy in self.parts()))

    def parts(self) -> list[StoppingPolicy]:
        """The policies it is made of."""
        return [policy for policy in self.policies if isinstance(policy, StoppingPolicy)]

    def decisions(self, state: LoopState) -> list[Decision]:
        """What each policy says."""
        return [policy.decide(state) for policy in self.parts()]

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor | None:
        """The sum of the policies' losses; see the contract."""
        losses = [loss for policy in self.parts() if (loss := policy.loss(hidden, answered)) is not None]
        total: Tensor | None = sum(losses[1:], losses[0]) if losses else None
        return total


def examples() -> list[Part]:
    """Two policies, one of which learns, for the contract tests."""
    return [_tiny("learned_halt"), _tiny("max_turns")]


def _tiny(name: str) -> Part:
    return Part("stopping", name, stopping_policies.get(name).cls.tiny())
