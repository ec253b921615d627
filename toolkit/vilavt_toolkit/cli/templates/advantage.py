"""The advantage 'my_part': the reward minus the mean of the other rollouts, within bounds.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    rl:
      advantage: {name: my_part, bound: 2.0}
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    bound: float = setting(5.0, help="largest absolute advantage", minimum=0.01)


@advantages.register("my_part", MyPartConfig)
class MyPart(Advantage):
    """Compare a rollout with the mean of the others of its prompt group, within bounds."""

    def __init__(self, config: MyPartConfig) -> None:
        self.bound = config.bound

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """Return the advantages of P prompt groups of G rollouts, each group by itself; [P, G] -> [P, G]."""
        size = rewards.shape[1]
        # The mean of the others leaves the rollout's own reward out of its baseline, which would bias it.
        others = (rewards.sum(1, keepdim=True) - rewards) / (size - 1)
        return (rewards - others).clamp(-self.bound, self.bound)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
