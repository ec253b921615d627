"""Rewards, advantages and policy losses: the parts of the reinforcement stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    compares_whole_step: ClassVar[bool] = False
    """True if an advantage also depends on the rewards of the step's other prompt groups."""

    @abstractmethod
    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return the advantages of P prompt groups of G rollouts; [P, G] -> [P, G].

        Each group is compared by itself, unless the class says `compares_whole_step`. They are finite for a group of
        equal rewards too. The engine leaves groups out of the loss whose rewards are equal, or with
        `compares_whole_step` whose advantages are 0.
        """

    def compare_scores(self, scores: Tensor, weights: Sequence[float]) -> Tensor:
        """Return the advantages of rollouts with the scores of R rewards, in float64; [P, G, R] -> [P, G] float32.

        The engine calls this one. By default the weighted sum counts. Override it to compare the rewards one by one.
        """
        # One after the other, so that the sum is to the bit the reward that is logged.
        rewards = scores.new_zeros(scores.shape[:2])
        for number, weight in enumerate(weights):
            rewards = rewards + weight * scores[..., number]
        return self.compute_advantages(rewards.float())


class PolicyLoss(Component, ABC):
    """The loss on produced tokens. `__init__(config)`.

    The loss of an optimizer step is the sum over sequences i of w_i times the sum over their tokens t of l_it.
    """

    @abstractmethod
    def token_losses(self, logp: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss l_it of every produced token [N], and where clipping stops its gradient, bool [N].

        `logp` [N] comes from the weights that learn, `old` [N] from those that sampled, both in float32 and at the
        sampling temperature. `advantages` [N] are those of each token's sequence. The values of a token depend on that
        token alone, so that a step can be split into micro-batches. A loss that looks at whole sequences takes the
        tokens for one sequence, and overrides `sequence_losses`.
        """

    def sequence_losses(
        self, logp: Tensor, old: Tensor, advantages: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return `token_losses` of whole sequences, which lie one behind the other and have `lengths` that sum to N.

        The engine calls this one. The values of a token depend on its own sequence alone.
        """
        return self.token_losses(logp, old, advantages)

    @abstractmethod
    def sequence_weights(self, lengths: Sequence[int]) -> list[float]:
        """Return the weight w_i of every sequence, from the numbers of produced tokens of all sequences of a step.

        They are computed over the whole optimizer step, so that no split into micro-batches changes a gradient. An
        empty sequence has weight 0.
        """
