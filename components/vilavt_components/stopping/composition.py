"""The base of stopping policies that are made of others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vilavt_toolkit.contracts import Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import Part, stopping_policies


class Composed(StoppingPolicy):
    """Holds policies, needs everything that one of them needs, and has the sum of their losses."""

    def __init__(self, parts: Sequence[Part], width: int) -> None:
        super().__init__()
        # A ModuleList, so that the weights of policies that learn are saved and trained.
        self.policies = nn.ModuleList(part.build(width) for part in parts)
        self.needs = frozenset().union(*(policy.needs for policy in self.member_policies()))

    def member_policies(self) -> list[StoppingPolicy]:
        """Return the policies it is made of."""
        return [policy for policy in self.policies if isinstance(policy, StoppingPolicy)]

    def collect_decisions(self, state: LoopState) -> list[Decision]:
        """Ask every policy for its decision."""
        return [policy.decide(state) for policy in self.member_policies()]

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor | None:
        """Return the sum of the policies' losses, None if none of them learns; see the contract."""
        losses = [loss for policy in self.member_policies() if (loss := policy.loss(hidden, answered)) is not None]
        total: Tensor | None = sum(losses[1:], losses[0]) if losses else None
        return total


def example_parts() -> list[Part]:
    """Return two policies for the contract tests, one of which learns."""
    return [_tiny_part("learned_halt"), _tiny_part("max_turns")]


def _tiny_part(name: str) -> Part:
    return Part("stopping", name, stopping_policies.get(name).cls.tiny())
