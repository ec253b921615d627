"""Rewards, advantages and policy losses: the parts of the reinforcement stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.task import Sample
from vilavt_toolkit.contracts.trajectory import Trajectory
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What the settings of every reward begin with; a reward's own config inherits from it."""

    weight: float = setting(1.0, help="what the reward is multiplied with before all are added up")


class Reward(Component, ABC):
    """Scores a rollout. `__init__(config)`, its config a `RewardSettings`; the engine applies the weight."""

    @abstractmethod
    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """The unweighted reward: in [0, 1], or 0 and below for a cost. Pure; reads no clock, draws nothing."""


class Advantage(Component, ABC):
    """Turns rewards into advantages. `__init__(config)`."""

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of P prompt groups of G rollouts, each group by itself; [P, G] -> [P, G].

        Finite on groups of equal rewards too; these the engine finds, and leaves out.
        """


class PolicyLoss(Component, ABC):
    """The loss on produced tokens. `__init__(config)`. Loss of a step: sum over sequences i of w_i sum_t l_it."""

    @abstractmethod
    def tokens(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [N] of every produced token, and whether clipping stops its gradient, bool [N].

        `logp` [N] is under the weights that learn, `old` [N] under those that sampled, both float32 and at the
        sampling temperature; `advantages` [N] of each token's sequence. A token's values depend on that token alone.
        """

    @abstractmethod
    def weights(self, lengths: Sequence[int]) -> list[float]:
        """The weight w_i of every sequence, from the numbers of produced tokens of all sequences of a step.

        Over the whole optimizer step, so that no split into micro-batches changes a gradient. 0 for an empty one.
        """
