"""Trajectories side by side as one padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel, Trajectory, View


@dataclass(frozen=True)
class Batch:
    """B trajectories, padded to L columns; regions, groups and inquiries packed, indices counted over the batch."""

    ids: Tensor
    """[B, L]"""
    positions: Tensor
    """[P, B, L] as the language model places each row's own tokens, however it is padded."""
    mask: Tensor
    """[B, L] True on tokens, False on padding."""
    targets: Tensor
    """[N] where the model's own tokens stand in the flattened [B * L] columns; the column before predicts each."""
    slots: Tensor
    """[F] where each feature goes in the flattened [B * L] columns."""
    views: tuple[View, ...]
    groups: tuple[int, ...]
    """Inquiry group of every view."""
    inquiries: tuple[tuple[int, ...], ...]
    """Ids of every group's inquiry."""
    starts: Tensor
    """[M] the flattened [B * L] columns that the M turns the model wrote begin behind: each predicts a first token."""
    answered: Tensor
    """[M] float32, 1 where that turn answers, 0 where it calls the tool; turns that do neither are left out."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`; views move when they are embedded."""
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
    """Pad trajectories and pack their regions; a group never leaves its own trajectory."""
    length = max(len(trajectory.ids) for trajectory in trajectories)
    shape = (len(trajectories), length)
    ids = torch.full(shape, language_model.placeholder)
    positions = torch.zeros(language_model.axes, *shape, dtype=torch.long)
    mask, produced = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    slots: list[Tensor] = []
    groups: list[int] = []
    inquiries: list[tuple[int, ...]] = []
    begun: list[tuple[int, bool]] = []
    for row, trajectory in enumerate(trajectories):
        size = len(trajectory.ids)
        start = length - size if left else 0
        span = slice(start, start + size)
        ids[row, span] = torch.tensor(trajectory.ids)
        produced[row, span] = torch.tensor(trajectory.produced)
        mask[row, span] = True
        positions[:, row, span] = trajectory.positions(language_model)
        begun += [(row * length + start + column, answers) for column, answers in _turn_starts(trajectory)]
        for region in trajectory.regions:
            first = row * length + start + region.start
            slots.append(torch.arange(first, first + region.count))
            groups.append(len(inquiries) + region.group)
        inquiries += [group.ids for group in trajectory.groups]
    placed = torch.cat(slots) if slots else torch.zeros(0, dtype=torch.long)
    packed = tuple(view for row in views for view in row)
    targets = produced.flatten().nonzero()[:, 0]
    starts = torch.tensor([column for column, _ in begun], dtype=torch.long)
    answered = torch.tensor([answers for _, answers in begun], dtype=torch.float32)
    return Batch(ids, positions, mask, targets, placed, packed, tuple(groups), tuple(inquiries), starts, answered)


def _turn_starts(trajectory: Trajectory) -> Iterator[tuple[int, bool]]:
    """The column before each turn that the model wrote and that answers or calls, and whether it answers."""
    # Records from before turns' starts were kept have none.
    for start, turn in zip(trajectory.starts, trajectory.turns, strict=bool(trajectory.starts)):
        written = start < len(trajectory.produced) and trajectory.produced[start]
        if written and start and (turn.answer is not None or turn.call is not None):
            yield start - 1, turn.answer is not None
