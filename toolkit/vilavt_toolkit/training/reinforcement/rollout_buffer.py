"""Rollouts that an update learns from, kept through its inner epochs and, in a checkpoint, over a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.contracts import LanguageModel, Trajectory, View
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.models.batch import Batch, collate


@dataclass(frozen=True)
class Row:
    """A rollout that is learnt from: pixels and ids, never features, which age with every update."""

    sample: str
    trajectory: Trajectory
    views: tuple[View, ...]
    advantage: float

    @property
    def produced(self) -> int:
        """How many tokens the model wrote."""
        return sum(self.trajectory.produced)

    @property
    def sampled_logprobs(self) -> list[float]:
        """The log-probability of every produced token when it was sampled."""
        trajectory = self.trajectory
        return [p for p, own in zip(trajectory.logprobs, trajectory.produced, strict=True) if own]


@dataclass(frozen=True)
class Chunk:
    """Rows that are in memory at once, and the span of their tokens among all produced tokens."""

    rows: slice
    tokens: slice


@dataclass
class Pending:
    """The rollouts of a step, those of like lengths together."""

    rows: tuple[Row, ...]
    old: Tensor
    """[N] log-probabilities of all produced tokens under the weights that sampled them, by the training forward."""
    reference: Tensor
    """[N] the same under the weights that training started from; zeros where they are not asked for."""

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str) -> Pending:
        """Sort rows by length, so that little is padded; log-probabilities are to be filled in."""
        placed = tuple(sorted(rows, key=lambda row: len(row.trajectory.ids)))
        old, reference = torch.zeros(2, sum(row.produced for row in placed), dtype=torch.float32, device=device)
        return cls(placed, old, reference)

    @property
    def lengths(self) -> list[int]:
        """Produced tokens of every row."""
        return [row.produced for row in self.rows]

    def chunks(self, size: int | None) -> Iterator[Chunk]:
        """Split the rows; no gradient depends on how."""
        lengths, token = self.lengths, 0
        step = size or len(self.rows)
        for start in range(0, len(self.rows), step):
            count = sum(lengths[start : start + step])
            yield Chunk(slice(start, start + step), slice(token, token + count))
            token += count

    def batch(self, chunk: Chunk, language_model: LanguageModel) -> Batch:
        """The rows of a chunk, padded side by side."""
        rows = self.rows[chunk.rows]
        return collate([row.trajectory for row in rows], [row.views for row in rows], language_model)

    def state(self) -> TrainingState:
        """Everything as tensors and plain data; `from_state` reads it back to the bit."""
        tensors = {"pending.old": self.old.cpu().clone(), "pending.reference": self.reference.cpu().clone()}
        # Rollouts of one prompt share their first views, which a file holds once.
        numbers: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            views = []
            for view in row.views:
                number = numbers.setdefault(id(view.data), len(numbers))
                tensors[f"pending.view.{number}"] = view.data.contiguous()
                views.append([number, list(view.size)])
            kept = {"sample": row.sample, "advantage": row.advantage, "trajectory": row.trajectory.to_json()}
            rows.append({**kept, "views": views})
        return TrainingState(tensors, {"pending": rows})

    @classmethod
    def from_state(cls, state: TrainingState, device: torch.device | str) -> Pending:
        """Read what `state` gave; raises RunError where it is damaged."""
        try:
            return cls(
                tuple(_row(data, state.tensors) for data in state.data["pending"]),
                state.tensors["pending.old"].to(device),
                state.tensors["pending.reference"].to(device),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"The checkpoint's pending rollouts cannot be read ({error!r}); use another one.") from error


def _row(data: dict[str, Any], tensors: dict[str, Tensor]) -> Row:
    views = tuple(View(tensors[f"pending.view.{number}"], tuple(size)) for number, size in data["views"])
    return Row(data["sample"], Trajectory.from_json(data["trajectory"]), views, data["advantage"])


def usable(view: View) -> View:
    """The view as a training forward can save it: the loop's own were made in inference mode."""
    return View(view.data.clone(), view.size) if view.data.is_inference() else view
