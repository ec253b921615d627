"""Rewards from outside: a function as a registered reward, and scoring that survives what such a function may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

from vilavt_toolkit.contracts import Reward, RewardSettings, Sample, Trajectory
from vilavt_toolkit.registry import registry

RewardFunction = Callable[[Sample, Trajectory], float]


F = TypeVar("F", bound=RewardFunction)


class FunctionReward(Reward):
    """A reward that is one function of sample and trajectory."""

    function: ClassVar[RewardFunction]

    def __init__(self, config: RewardSettings) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> RewardSettings:
        """Return the settings of any reward: its weight."""
        return RewardSettings()

    def score(self, sample: Sample, trajectory: Trajectory) -> float:
        """What the function returns."""
        return type(self).function(sample, trajectory)


def reward_function(name: str) -> Callable[[F], F]:
    """Register the decorated `f(sample, trajectory) -> float` as the reward `name`; raises DuplicateName.

    The function itself is left as it is. In a recipe it has one setting, its `weight`.
    """

    def add(function: F) -> F:
        namespace = {
            "function": staticmethod(function),
            "__doc__": function.__doc__ or "",
            "__module__": function.__module__,
            "__qualname__": getattr(function, "__qualname__", name),
        }
        registry.rewards.register(name, RewardSettings)(type(name, (FunctionReward,), namespace))
        return function

    return add
