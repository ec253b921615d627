"""What is watched while reinforcement runs: what the rollouts do, and whether it collapses."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Trajectory
from vilavt_toolkit.training.reinforcement.rollouts import Group, Rollout

log = logging.getLogger(__name__)


def carried_out(trajectory: Trajectory) -> int:
    """Tool calls whose regions were encoded; each made a group of its own."""
    return len({region.group for region in trajectory.regions if region.box is not None})


def rollout_metrics(groups: Sequence[Group], names: Sequence[str], flat: Sequence[bool]) -> dict[str, float]:
    """Means over all rollouts of a step; `flat` says of every prompt group whether its rewards are all equal.

    tool_rate: rollouts with a tool call that was carried out; valid_tool_rate: turns without an answer whose call
    was; truncated: rollouts whose answer had to be demanded, or that filled the context.
    """
    rollouts = [rollout for group in groups for rollout in group]
    trajectories = [rollout.trajectory for rollout in rollouts]
    calls = [carried_out(trajectory) for trajectory in trajectories]
    unanswered = sum(turn.answer is None for trajectory in trajectories for turn in trajectory.turns)
    count = len(rollouts)
    found = {
        "reward": sum(rollout.reward for rollout in rollouts) / count,
        **_by_part(rollouts, names),
        "tool_rate": sum(call > 0 for call in calls) / count,
        "turns": sum(len(trajectory.turns) for trajectory in trajectories) / count,
        "produced": sum(sum(trajectory.produced) for trajectory in trajectories) / count,
        "truncated": sum(trajectory.cut_short for trajectory in trajectories) / count,
        "zero_variance": sum(flat) / len(groups),
        "rollouts": float(count),
    }
    return found | ({"valid_tool_rate": sum(calls) / unanswered} if unanswered else {})


def _by_part(rollouts: Sequence[Rollout], names: Sequence[str]) -> dict[str, float]:
    scores = [rollout.scores for rollout in rollouts]
    return {f"reward/{name}": sum(row[place] for row in scores) / len(scores) for place, name in enumerate(names)}


class Tally:
    """Means over the tokens of an update, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._most: dict[str, Tensor] = {}
        self._tokens = 0

    def add(self, tokens: int, **values: Tensor) -> None:
        """Add a value for each of some tokens, by name; [N] each."""
        self._tokens += tokens
        for name, value in values.items():
            total = value.detach().float().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def keep_most(self, name: str, value: Tensor) -> None:
        """Keep the largest of some values [N] by name, beside what was kept before."""
        most = value.detach().float().max()
        self._most[name] = torch.maximum(self._most[name], most) if name in self._most else most

    def means(self) -> dict[str, Tensor]:
        """The means, and the largest values, by name."""
        return {name: total / max(1, self._tokens) for name, total in self._sums.items()} | self._most


_ADVICE = {
    "tool_rate": "lower the learning rate, the price of looking, or raise rl.kl; look at rollouts/ in the run",
    "entropy": "lower the learning rate, raise the policy loss's eps_high or rl.kl, or stop here",
}
_LEAST = {"tool_rate": 0.05, "entropy": 1e-3}
"""Below this at the start there is nothing that could collapse."""


@dataclass
class CollapseWatch:
    """Says once when tool use or entropy has fallen to a tenth of what the first steps had."""

    window: int = 10
    """Steps whose mean is compared, at the start and now."""
    share: float = 0.1
    first: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, deque[float]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def see(self, step: int, **values: float) -> None:
        """Take in a step's `tool_rate` and `entropy`."""
        for name, value in values.items():
            first = self.first.setdefault(name, [])
            if len(first) < self.window:
                first.append(value)
                continue
            recent = self.recent.setdefault(name, deque(maxlen=self.window))
            recent.append(value)
            if len(recent) == self.window and name not in self.said:
                self._compare(step, name, sum(first) / self.window, sum(recent) / self.window)

    def _compare(self, step: int, name: str, before: float, now: float) -> None:
        if before < _LEAST[name] or now > self.share * before:
            return
        self.said.append(name)
        log.warning(
            "step %d: %s has collapsed: %.3g on average over the last %d steps, %.3g over the first %d; %s.",
            step, name, now, self.window, before, self.window, _ADVICE[name],
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain data; `load` reads it back."""
        return {"first": self.first, "recent": {k: list(v) for k, v in self.recent.items()}, "said": self.said}

    def load(self, data: dict[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.first, self.said = data["first"], data["said"]
        self.recent = {name: deque(values, maxlen=self.window) for name, values in data["recent"].items()}
