"""Rollouts that an update learns from, kept through its inner epochs, and in a checkpoint over a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Self

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.contracts import LanguageModel, Trajectory, View
from vilavt_toolkit.data.row_budget import RowBudget, RowSize
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.models.batch import Batch, collate, collate_branches
from vilavt_toolkit.training.reinforcement.shared_prompts import count_shared_columns, fill_shared_rows
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
    shared: tuple[tuple[int, int], ...] = ()
    """Pairs (rollouts, columns): so many of them begin with the same columns, which the row holds once."""


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

    def split_into_chunks(
        self, size: int | None, budget: RowBudget | None = None, shares_prompts: bool = False
    ) -> Iterator[RolloutChunk]:
        """Yield chunks of `size` rollouts, or one of all; with `budget` rows that rollouts share without padding.

        If it `shares_prompts`, a row holds once what the rollouts of a prompt begin with. No gradient depends on any of
        this. The rows depend on the rollouts alone, in this and in a resumed run.
        """
        count = len(self.rollouts)
        columns = [0] * count
        if budget is not None and shares_prompts:
            parts, columns = self._fill_shared_rows(budget)
        elif budget is None:
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
            runs = groupby(numbers, key=lambda number: self.rollouts[number].sample)
            counts = [(len(own), columns[own[0]]) for own in (list(run) for _, run in runs)]
            # A prompt of one rollout in a row is shared with nobody.
            shared = tuple((rollouts, common if rollouts > 1 else 0) for rollouts, common in counts)
            yield RolloutChunk(tuple(numbers), tokens, budget is not None, shared if any(columns) else ())

    def _fill_shared_rows(self, budget: RowBudget) -> tuple[list[list[int]], list[int]]:
        """Return the rollouts of every row, and the columns of each that the rollouts of its prompt share."""
        names = list(dict.fromkeys(rollout.sample for rollout in self.rollouts))
        prompts = [names.index(rollout.sample) for rollout in self.rollouts]
        pairs = [(rollout.trajectory, rollout.views) for rollout in self.rollouts]
        columns, stems = [], []
        for prompt in range(len(names)):
            own = [pair for pair, number in zip(pairs, prompts, strict=True) if number == prompt]
            # Over all rollouts of a prompt, so that each has the same stem in whichever row it is.
            columns.append(count_shared_columns(own) if len(own) > 1 else 0)
            trajectory, views = own[0]
            shown = zip(trajectory.regions, views, strict=True)
            patches = sum(budget.count_patches(view) for region, view in shown if region.start < columns[-1])
            stems.append(RowSize(columns[-1], patches))
        rows = fill_shared_rows([budget.measure(*pair) for pair in pairs], stems, prompts, budget)
        return rows, [columns[prompt] for prompt in prompts]

    def select_rollouts(self, chunk: RolloutChunk) -> list[LearnedRollout]:
        """Return the rollouts of a chunk, in its order."""
        return [self.rollouts[number] for number in chunk.rollouts]

    def collate_chunk(self, chunk: RolloutChunk, language_model: LanguageModel) -> Batch:
        """Return the rollouts of a chunk as a batch: padded rows, or one row."""
        rollouts = self.select_rollouts(chunk)
        trajectories, views = [rollout.trajectory for rollout in rollouts], [rollout.views for rollout in rollouts]
        if chunk.shared:
            return collate_branches(trajectories, views, chunk.shared, language_model)
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
