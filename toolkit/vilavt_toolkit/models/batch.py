"""Batches: trajectories side by side and padded, or one after another in a row, with their regions packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel, ShownRegion, Trajectory, View


@dataclass(frozen=True)
class Batch:
    """Holds B trajectories, padded to L columns, or several in one row of L. Regions and groups are packed over all."""

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
    documents: tuple[int, ...] = ()
    """Lengths of the trajectories of a packed row, one after another; empty if each has a row of its own.

    With `stems` they are those of stems and branches: a beginning that trajectories share, and what each goes on with.
    """
    stems: tuple[int, ...] = ()
    """Number of the document that each of `documents` goes on from, or -1; empty if nothing is shared."""

    @property
    def size(self) -> int:
        """Number of trajectories."""
        return len(self.documents) or len(self.ids)

    def find_trajectories(self, columns: Tensor) -> list[int]:
        """Return the numbers of the trajectories that flattened [B * L] columns belong to, each once and in order."""
        return sorted(set(self.own_trajectories(columns).tolist()))

    def own_trajectories(self, columns: Tensor) -> Tensor:
        """Return the number of the trajectory of each of N flattened [B * L] columns."""
        if not self.documents:
            return columns // self.ids.shape[1]
        ends = torch.tensor(self.documents, device=columns.device).cumsum(0)
        return torch.searchsorted(ends, columns, right=True)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`; views move when they are embedded."""
        tensors: dict[str, Any] = {
            item.name: value.to(device, non_blocking=True)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class _Piece:
    """Holds the columns `start .. end` of a trajectory, which follow the document number `stem` (-1: none)."""

    trajectory: Trajectory
    views: Sequence[View]
    """Views of all regions of the trajectory."""
    start: int
    end: int
    stem: int = -1

    def __len__(self) -> int:
        return self.end - self.start

    def list_regions(self) -> list[tuple[ShownRegion, View]]:
        """Return the regions that stand in the piece, with their views."""
        pairs = zip(self.trajectory.regions, self.views, strict=True)
        return [(region, view) for region, view in pairs if self.start <= region.start < self.end]

    def list_groups(self) -> list[int]:
        """Return the numbers of the inquiry groups of the piece, in order."""
        if len(self) == len(self.trajectory.ids):
            return list(range(len(self.trajectory.groups)))
        return sorted({region.group for region, _ in self.list_regions()})


def make_empty_batch(language_model: LanguageModel) -> Batch:
    """Return a batch of one row of two tokens, the second a target, for a process that has no sample to run."""
    ids = torch.full((1, 2), language_model.placeholder)
    positions = torch.arange(2).expand(language_model.axes, 1, 2)
    none, mask = torch.zeros(0, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    return Batch(ids, positions, mask, torch.ones(1, dtype=torch.long), none, (), (), (), none, none.float())


def collate(
    trajectories: Sequence[Trajectory],
    views: Sequence[Sequence[View]],
    language_model: LanguageModel,
    left: bool = False,
    packed: bool = False,
) -> Batch:
    """Pad trajectories to one length, and pack their regions; a group never leaves its own trajectory.

    `views` are those of each trajectory's regions. `left` pads on the left. `packed` lays the trajectories one after
    another into a single row, without padding.
    """
    pairs = zip(trajectories, views, strict=True)
    pieces = [_Piece(trajectory, own, 0, len(trajectory.ids)) for trajectory, own in pairs]
    return _collate_pieces(pieces, language_model, left, packed)


def collate_branches(
    trajectories: Sequence[Trajectory],
    views: Sequence[Sequence[View]],
    shared: Sequence[tuple[int, int]],
    language_model: LanguageModel,
) -> Batch:
    """Lay trajectories one after another into a single row, in which what they begin with together stands once.

    `shared` are pairs (trajectories, columns): so many trajectories in a row begin with the same columns, regions and
    views, none of them produced. Targets are in the order of the trajectories.
    """
    pieces: list[_Piece] = []
    remaining = iter(zip(trajectories, views, strict=True))
    for count, columns in shared:
        stem = len(pieces) if columns else -1
        for place in range(count):
            trajectory, own = next(remaining)
            if columns and not place:
                pieces.append(_Piece(trajectory, own, 0, columns))
            pieces.append(_Piece(trajectory, own, columns, len(trajectory.ids), stem))
    return _collate_pieces(pieces, language_model, left=False, packed=True)


def _collate_pieces(pieces: Sequence[_Piece], language_model: LanguageModel, left: bool, packed: bool) -> Batch:
    lengths = tuple(map(len, pieces))
    shape, firsts = _place_trajectories(lengths, left, packed)
    ids = torch.full((shape[0] * shape[1],), language_model.placeholder)
    positions = torch.zeros(language_model.axes, len(ids), dtype=torch.long)
    mask, produced = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.bool)
    slots: list[Tensor] = []
    views: list[View] = []
    groups: list[int] = []
    inquiries: list[tuple[int, ...]] = []
    turns: list[tuple[int, bool]] = []
    for first, piece in zip(firsts, pieces, strict=True):
        trajectory, own = piece.trajectory, slice(piece.start, piece.end)
        span, shift = slice(first, first + len(piece)), first - piece.start
        ids[span] = torch.tensor(trajectory.ids[own])
        produced[span] = torch.tensor(trajectory.produced[own])
        mask[span] = True
        # Positions count a trajectory's own tokens: neither padding on the left nor those before it shift its RoPE.
        positions[:, span] = trajectory.positions(language_model)[:, own]
        starts = [each for each in _turn_starts(trajectory) if piece.start <= each[0] < piece.end]
        turns += [(shift + column, answers) for column, answers in starts]
        numbers = {group: len(inquiries) + place for place, group in enumerate(piece.list_groups())}
        for region, view in piece.list_regions():
            slots.append(torch.arange(shift + region.start, shift + region.start + region.count))
            groups.append(numbers[region.group])
            views.append(view)
        inquiries += [trajectory.groups[group].ids for group in numbers]
    if produced[firsts].any():
        raise ValueError("a trajectory begins with a token of the model, which no column of its own predicts")
    return Batch(
        ids.view(shape),
        positions.view(-1, *shape),
        mask.view(shape),
        targets=produced.nonzero()[:, 0],
        slots=torch.cat(slots) if slots else torch.zeros(0, dtype=torch.long),
        views=tuple(views),
        groups=tuple(groups),
        inquiries=tuple(inquiries),
        starts=torch.tensor([column for column, _ in turns], dtype=torch.long),
        answered=torch.tensor([answers for _, answers in turns], dtype=torch.float32),
        documents=lengths if packed else (),
        stems=tuple(piece.stem for piece in pieces) if any(piece.stem >= 0 for piece in pieces) else (),
    )


def _place_trajectories(lengths: Sequence[int], left: bool, packed: bool) -> tuple[tuple[int, int], list[int]]:
    """Return the shape [B, L] of a batch, and the flattened column in which each trajectory begins."""
    if packed:
        return (1, sum(lengths)), list(accumulate(lengths, initial=0))[:-1]
    longest = max(lengths)
    return (len(lengths), longest), [
        row * longest + (longest - length if left else 0) for row, length in enumerate(lengths)
    ]


def _turn_starts(trajectory: Trajectory) -> Iterator[tuple[int, bool]]:
    """Yield the column before each turn that the model wrote, and True if it answers, False if it calls the tool."""
    # Trajectories saved by the first versions have no `starts`.
    for start, turn in zip(trajectory.starts, trajectory.turns, strict=bool(trajectory.starts)):
        written = start < len(trajectory.produced) and trajectory.produced[start]
        if written and start and (turn.answer is not None or turn.call is not None):
            yield start - 1, turn.answer is not None
