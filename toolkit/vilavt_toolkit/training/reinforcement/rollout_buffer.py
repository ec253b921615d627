"""Rollouts that an update learns from, kept through its inner epochs, and in a checkpoint over a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.contracts import LanguageModel, Trajectory, View
from vilavt_toolkit.data.row_budget import RowBudget
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.models.batch import Batch, collate
from vilavt_toolkit.training.supervised.packing import fill_rows


@dataclass(frozen=True)
class LearnedRollout:
    """A rollout to learn from. It holds pixels and ids, not features, which every update makes out of date."""

    sample: str
    trajectory: Trajectory
    views: tuple[View, ...]
    advantage: float

    @property
    def produced_tokens(self) -> int:
        """Number of tokens that the model wrote."""
        return sum(self.trajectory.produced)

    @property
    def sampled_logprobs(self) -> list[float]:
        """The log-probability of every produced token when it was sampled."""
        trajectory = self.trajectory
        return [p for p, is_own in zip(trajectory.logprobs, trajectory.produced, strict=True) if is_own]


@dataclass(frozen=True)
class RolloutChunk:
    """Rollouts that are in memory together, by their numbers, and where their tokens are among all produced tokens."""

    rollouts: tuple[int, ...]
    tokens: Tensor
    """[n] places of the tokens of these rollouts, one rollout after another."""
    is_packed: bool
    """True if they share one row, False if each has its own, padded to the longest."""


@dataclass
class RolloutBuffer:
    """The rollouts of a step, sorted by length."""

    rollouts: tuple[LearnedRollout, ...]
    old_logprobs: Tensor
    """[N] log-probabilities of all produced tokens by the training forward, under the weights that sampled them."""
    reference_logprobs: Tensor
    """[N] the same under the weights that training started from; zeros if they are not needed."""

    @classmethod
    def from_rollouts(cls, rollouts: Sequence[LearnedRollout], device: torch.device | str) -> Self:
        """Sort rollouts by length, so that chunks need little padding; log-probabilities are zeros to be filled."""
        ordered = tuple(sorted(rollouts, key=lambda rollout: len(rollout.trajectory.ids)))
        count = sum(rollout.produced_tokens for rollout in ordered)
        old, reference = torch.zeros(2, count, dtype=torch.float32, device=device)
        return cls(ordered, old, reference)

    @property
    def lengths(self) -> list[int]:
        """Number of produced tokens of every rollout."""
        return [rollout.produced_tokens for rollout in self.rollouts]

    def split_into_chunks(self, size: int | None, budget: RowBudget | None = None) -> Iterator[RolloutChunk]:
        """Yield chunks of `size` rollouts, or one of all; with `budget` rows that rollouts share without padding.

        No gradient depends on it. The rows depend on the sizes of the rollouts alone, in this and in a resumed run.
        """
        count = len(self.rollouts)
        if budget is None:
            parts = [
                list(range(start, min(start + (size or count), count))) for start in range(0, count, size or count)
            ]
        else:
            parts = fill_rows([budget.measure(each.trajectory, each.views) for each in self.rollouts], budget)
        ends = list(accumulate(self.lengths, initial=0))
        for numbers in parts:
            # Made on the CPU: lengths are known there, and a GPU would be waited for.
            places = torch.cat([torch.arange(ends[number], ends[number + 1]) for number in numbers])
            tokens = places.to(self.old_logprobs.device, non_blocking=True)
            yield RolloutChunk(tuple(numbers), tokens, budget is not None)

    def select_rollouts(self, chunk: RolloutChunk) -> list[LearnedRollout]:
        """Return the rollouts of a chunk, in its order."""
        return [self.rollouts[number] for number in chunk.rollouts]

    def collate_chunk(self, chunk: RolloutChunk, language_model: LanguageModel) -> Batch:
        """Return the rollouts of a chunk as a batch: padded rows, or one row."""
        rollouts = self.select_rollouts(chunk)
        trajectories, views = [rollout.trajectory for rollout in rollouts], [rollout.views for rollout in rollouts]
        return collate(trajectories, views, language_model, packed=chunk.is_packed)

    def to_state(self) -> TrainingState:
        """Return everything as tensors and plain data; `from_state` reads it back to the bit."""
        tensors = {
            "pending.old": self.old_logprobs.cpu().clone(),
            "pending.reference": self.reference_logprobs.cpu().clone(),
        }
        # Rollouts of one prompt share the tensors of their first views, which the file holds once.
        numbers: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        for rollout in self.rollouts:
            views = []
            for view in rollout.views:
                number = numbers.setdefault(id(view.data), len(numbers))
                tensors[f"pending.view.{number}"] = view.data.contiguous()
                views.append([number, list(view.size)])
            row = {"sample": rollout.sample, "advantage": rollout.advantage, "trajectory": rollout.trajectory.to_json()}
            rows.append({**row, "views": views})
        return TrainingState(tensors, {"pending": rows})

    @classmethod
    def from_state(cls, state: TrainingState, device: torch.device | str) -> RolloutBuffer:
        """Read what `to_state` gave; raises RunError if it is damaged."""
        try:
            return cls(
                tuple(_rollout_from_json(data, state.tensors) for data in state.data["pending"]),
                state.tensors["pending.old"].to(device),
                state.tensors["pending.reference"].to(device),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"The checkpoint's pending rollouts cannot be read ({error!r}). Use another one.") from error


def _rollout_from_json(data: dict[str, Any], tensors: dict[str, Tensor]) -> LearnedRollout:
    views = tuple(View(tensors[f"pending.view.{number}"], tuple(size)) for number, size in data["views"])
    return LearnedRollout(data["sample"], Trajectory.from_json(data["trajectory"]), views, data["advantage"])


def outside_inference_mode(view: View) -> View:
    """Return the view with data that autograd can save; the loop makes its views in inference mode.

    Autograd refuses to save inference tensors for a backward pass, and only a copy is an ordinary tensor.
    """
    return View(view.data.clone(), view.size) if view.data.is_inference() else view
