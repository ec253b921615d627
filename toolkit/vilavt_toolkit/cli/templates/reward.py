"""The reward 'my_part': thoughts are short.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    rl:
      rewards: [{name: answer}, {name: my_part, weight: 0.1, max_words: 20}]
"""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import rewards, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig(RewardConfig):
    """The keys that a recipe may set, each with its type, default and help; every reward also has `weight`."""

    max_words: int = setting(20, help="most words of a short thought", minimum=1)


@rewards.register("my_part", MyPartConfig)
class MyPart(Reward):
    """Reward the share of turns whose thought is short."""

    def __init__(self, config: MyPartConfig) -> None:
        self.max_words = config.max_words

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return the share of the model's turns with a short thought, in [0, 1]; the engine applies the weight.

        A reward lies in [0, 1], a cost is 0 or below. Scoring is pure: it draws no random number and changes nothing.
        """
        # A turn that zooms has `turn.call` with its `inquiry` and `regions`; in other turns it is None.
        turns = trajectory.turns
        short = [turn for turn in turns if len(turn.thought.split()) <= self.max_words]
        return len(short) / len(turns) if turns else 0.0

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
