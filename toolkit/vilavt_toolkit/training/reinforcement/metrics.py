"""Metrics of the reinforcement stage: what the rollouts do, averages over tokens, and a watch for collapse."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Trajectory
from vilavt_toolkit.training.reinforcement.rollouts import PromptGroup, Rollout

log = logging.getLogger(__name__)


def count_encoded_calls(trajectory: Trajectory) -> int:
    """Count the tool calls whose regions were encoded."""
    # Each call makes an inquiry group of its own. Overviews have no box and belong to no call.
    return len({region.group for region in trajectory.regions if region.box is not None})


def compute_rollout_metrics(
    groups: Sequence[PromptGroup], names: Sequence[str], flat: Sequence[bool]
) -> dict[str, float]:
    """Return means over all rollouts of a step.

    `names` are those of the rewards. `flat` is True for every prompt group whose rewards are all equal. Among the
    metrics are:
    tool_rate        rollouts with a tool call whose regions were encoded
    valid_tool_rate  of the turns without an answer, those whose call was encoded
    truncated        rollouts whose answer had to be demanded, or that filled the context
    """
    rollouts = [rollout for group in groups for rollout in group]
    trajectories = [rollout.trajectory for rollout in rollouts]
    calls = [count_encoded_calls(trajectory) for trajectory in trajectories]
    count = len(rollouts)
    metrics = {
        "reward": sum(rollout.reward for rollout in rollouts) / count,
        **_mean_scores(rollouts, names),
        "tool_rate": sum(call > 0 for call in calls) / count,
        "turns": sum(len(trajectory.turns) for trajectory in trajectories) / count,
        "produced": sum(sum(trajectory.produced) for trajectory in trajectories) / count,
        "truncated": sum(trajectory.cut_short for trajectory in trajectories) / count,
        "zero_variance": sum(flat) / len(groups),
        "rollouts": float(count),
    }
    # If every turn answered, there was no call that could have been valid.
    unanswered = sum(turn.answer is None for trajectory in trajectories for turn in trajectory.turns)
    if unanswered:
        metrics["valid_tool_rate"] = sum(calls) / unanswered
    return metrics


def _mean_scores(rollouts: Sequence[Rollout], names: Sequence[str]) -> dict[str, float]:
    scores = [rollout.scores for rollout in rollouts]
    return {f"reward/{name}": sum(row[place] for row in scores) / len(scores) for place, name in enumerate(names)}


class TokenAverages:
    """Averages over the tokens of an update.

    Sums stay on the device until they are logged: reading one in each micro-batch would wait for the device.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}
        self._tokens = 0
        self._counts: dict[str, int] = {}
        """Number of tokens of the sums that are not over all of them."""

    def add(self, tokens: int, **values: Tensor) -> None:
        """Add values [N] of some tokens, by name; `tokens` is 0 for tokens that were counted with other values."""
        self._tokens += tokens
        for name, value in values.items():
            total = value.detach().float().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def add_turns(self, name: str, turns: Sequence[int], values: Tensor) -> None:
        """Add values [N] of tokens whose turns, counted from 0, are given; the mean of turn 1 is `name`/turn_1."""
        if not turns:
            return
        # The number of turns is known on the CPU, so that nothing waits for the device.
        numbers = torch.tensor(turns).to(values.device, non_blocking=True)
        sums = torch.zeros(max(turns) + 1, dtype=torch.float32, device=values.device).index_add(
            0, numbers, values.detach().float()
        )
        for turn, total in enumerate(sums.unbind()):
            key = f"{name}/turn_{turn + 1}"
            self._sums[key] = self._sums[key] + total if key in self._sums else total
            self._counts[key] = self._counts.get(key, 0) + turns.count(turn)

    def keep_largest(self, name: str, value: Tensor) -> None:
        """Keep the largest of some values [N] and of those before them, by name."""
        largest = value.detach().float().max()
        self._largest[name] = torch.maximum(self._largest[name], largest) if name in self._largest else largest

    def compute_means(self) -> dict[str, Tensor]:
        """Return the means and the largest values, by name."""
        counts = self._counts
        means = {name: total / max(1, counts.get(name, self._tokens)) for name, total in self._sums.items()}
        return means | self._largest


_ADVICE = {
    "tool_rate": "Lower the learning rate or the price of looking, or raise rl.kl; look at rollouts/ in the run",
    "entropy": "Lower the learning rate, raise the policy loss's eps_high or rl.kl, or stop here",
}
_MIN_START = {"tool_rate": 0.05, "entropy": 1e-3}
"""A metric that starts below this is too small to collapse."""


@dataclass
class CollapseWatch:
    """Warns once if tool use or entropy falls to a tenth of its mean over the first steps.

    Both are early signs of a policy that has found one cheap behaviour and no longer explores.
    """

    window: int = 10
    """Number of steps averaged, at the start and now."""
    share: float = 0.1
    """Part of the start's mean at which a metric has collapsed."""
    first: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, deque[float]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """Metrics that a warning was given for."""

    def observe_step(self, step: int, **values: float) -> None:
        """Record a step's `tool_rate` and `entropy`, and warn if one has collapsed."""
        for name, value in values.items():
            first = self.first.setdefault(name, [])
            if len(first) < self.window:
                first.append(value)
                continue
            # The first window ends before the recent one begins, so that no step counts in both.
            recent = self.recent.setdefault(name, deque(maxlen=self.window))
            recent.append(value)
            if len(recent) == self.window and name not in self.said:
                self._warn_if_collapsed(step, name, sum(first) / self.window, sum(recent) / self.window)

    def _warn_if_collapsed(self, step: int, name: str, before: float, now: float) -> None:
        if before < _MIN_START[name] or now > self.share * before:
            return
        self.said.append(name)
        log.warning(
            "step %d: %s has collapsed: %.3g on average over the last %d steps, %.3g over the first %d. %s.",
            step, name, now, self.window, before, self.window, _ADVICE[name],
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `load_json` reads back."""
        recent = {name: list(values) for name, values in self.recent.items()}
        return {"first": self.first, "recent": recent, "said": self.said}

    def load_json(self, data: dict[str, Any]) -> None:
        """Take over what `to_json` gave."""
        self.first, self.said = data["first"], data["said"]
        self.recent = {name: deque(values, maxlen=self.window) for name, values in data["recent"].items()}
