"""Batches: trajectories side by side, padded, with their regions packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel, Trajectory, View


@dataclass(frozen=True)
class Batch:
    """Holds B trajectories, padded to L columns. Regions, groups and inquiries are packed over the whole batch."""

    ids: Tensor
    """[B, L] token ids, with the placeholder on padding."""
    positions: Tensor
    """[P, B, L] positions of the tokens of each row, the same on whichever side it is padded."""
    mask: Tensor
    """[B, L] True on tokens, False on padding."""
    targets: Tensor
    """[N] flattened [B * L] columns of the model's own tokens; the column before each predicts it."""
    slots: Tensor
    """[F] flattened [B * L] columns of the features."""
    views: tuple[View, ...]
    groups: tuple[int, ...]
    """Inquiry group of every view."""
    inquiries: tuple[tuple[int, ...], ...]
    """Token ids of every group's inquiry."""
    starts: Tensor
    """[M] flattened [B * L] columns before the M turns that the model wrote: each predicts the first token of one."""
    answered: Tensor
    """[M] float32, 1 if that turn answers, 0 if it calls the tool; turns that do neither are left out."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`; views move when they are embedded."""
        tensors: dict[str, Any] = {
            item.name: value.to(device, non_blocking=True)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **tensors)


def collate(
    trajectories: Sequence[Trajectory],
    views: Sequence[Sequence[View]],
    language_model: LanguageModel,
    left: bool = False,
) -> Batch:
    """Pad trajectories to one length, and pack their regions; a group never leaves its own trajectory.

    `views` are those of each trajectory's regions. `left` pads on the left.
    """
    length = max(len(trajectory.ids) for trajectory in trajectories)
    shape = (len(trajectories), length)
    ids = torch.full(shape, language_model.placeholder)
    positions = torch.zeros(language_model.axes, *shape, dtype=torch.long)
    mask, produced = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    slots: list[Tensor] = []
    groups: list[int] = []
    inquiries: list[tuple[int, ...]] = []
    turns: list[tuple[int, bool]] = []
    for row, trajectory in enumerate(trajectories):
        size = len(trajectory.ids)
        start = length - size if left else 0
        span = slice(start, start + size)
        ids[row, span] = torch.tensor(trajectory.ids)
        produced[row, span] = torch.tensor(trajectory.produced)
        mask[row, span] = True
        # Positions count a row's own tokens, so that padding on the left shifts no RoPE.
        positions[:, row, span] = trajectory.positions(language_model)
        turns += [(row * length + start + column, answers) for column, answers in _turn_starts(trajectory)]
        for region in trajectory.regions:
            first = row * length + start + region.start
            slots.append(torch.arange(first, first + region.count))
            groups.append(len(inquiries) + region.group)
        inquiries += [group.ids for group in trajectory.groups]
    placed = torch.cat(slots) if slots else torch.zeros(0, dtype=torch.long)
    packed = tuple(view for row in views for view in row)
    targets = produced.flatten().nonzero()[:, 0]
    starts = torch.tensor([column for column, _ in turns], dtype=torch.long)
    answered = torch.tensor([answers for _, answers in turns], dtype=torch.float32)
    return Batch(ids, positions, mask, targets, placed, packed, tuple(groups), tuple(inquiries), starts, answered)


def _turn_starts(trajectory: Trajectory) -> Iterator[tuple[int, bool]]:
    """Yield the column before each turn that the model wrote, and True if it answers, False if it calls the tool."""
    # Trajectories saved by the first versions have no `starts`.
    for start, turn in zip(trajectory.starts, trajectory.turns, strict=bool(trajectory.starts)):
        written = start < len(trajectory.produced) and trajectory.produced[start]
        if written and start and (turn.answer is not None or turn.call is not None):
            yield start - 1, turn.answer is not None
