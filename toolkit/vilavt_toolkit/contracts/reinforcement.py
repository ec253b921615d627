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


# Keywords only, or this default would forbid required settings in the config of a reward.
@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Holds the setting that every reward has; the config of a reward inherits from it."""

    weight: float = setting(1.0, help="factor of this reward in the sum of all rewards")


class Reward(Component, ABC):
    """Scores a rollout. `__init__(config)`, its config a `RewardConfig`; the engine applies the weight."""

    @abstractmethod
    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return the unweighted reward: in [0, 1], or at most 0 for a cost.

        A pure function: it reads no clock and draws no random number.
        """


class Advantage(Component, ABC):
    """Turns rewards into advantages. `__init__(config)`."""

    @abstractmethod
    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return the advantages of P prompt groups of G rollouts, each group by itself; [P, G] -> [P, G].

        They are finite for a group of equal rewards too. The engine leaves such groups out of the loss.
        """


class PolicyLoss(Component, ABC):
    """The loss on produced tokens. `__init__(config)`.

    The loss of an optimizer step is the sum over sequences i of w_i times the sum over their tokens t of l_it.
    """

    @abstractmethod
    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss l_it of every produced token [N], and where clipping stops its gradient, bool [N].

        `logp` [N] comes from the weights that learn, `old` [N] from those that sampled, both in float32 and at the
        sampling temperature. `advantages` [N] are those of each token's sequence. The values of a token depend on that
        token alone, so that a step can be split into micro-batches.
        """

    @abstractmethod
    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return the weight w_i of every sequence, from the numbers of produced tokens of all sequences of a step.

        They are computed over the whole optimizer step, so that no split into micro-batches changes a gradient. An
        empty sequence has weight 0.
        """
