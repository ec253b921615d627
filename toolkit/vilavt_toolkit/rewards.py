"""The decorator `reward_function`: registers a plain function of sample and trajectory as a reward.

Three places are called rewards. This one is for a user's own functions. `vilavt_toolkit.registry.rewards` is the
registry that holds all rewards by name. `vilavt_components.rewards` are the reward classes that come with the toolkit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

from vilavt_toolkit.contracts import Reward, RewardConfig, Sample, Trajectory
from vilavt_toolkit.registry import registry

RewardFunction = Callable[[Sample, Trajectory], float]

F = TypeVar("F", bound=RewardFunction)


class FunctionReward(Reward):
    """A reward that is a plain function of sample and trajectory."""

    function: ClassVar[RewardFunction]

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> RewardConfig:
        """Return the settings of any reward: its weight."""
        return RewardConfig()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """Return what the function returns."""
        return type(self).function(sample, trajectory)


def reward_function(name: str) -> Callable[[F], F]:
    """Register the decorated `f(sample, trajectory) -> float` as the reward `name`; raises DuplicateName.

    The function itself stays a plain function. In a recipe it has one setting, its `weight`.
    """

    def register_function(function: F) -> F:
        # A class of its own for each function: the registry knows a component by its class, and `vilavt list` shows the
        # class's docstring and module.
        namespace = {
            "function": staticmethod(function),
            "__doc__": function.__doc__ or "",
            "__module__": function.__module__,
            "__qualname__": getattr(function, "__qualname__", name),
        }
        registry.rewards.register(name, RewardConfig)(type(name, (FunctionReward,), namespace))
        return function

    return register_function
