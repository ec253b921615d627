"""The reader: gives the language model what is new in each dialogue, once, and encodes new regions in packed calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Spent, View
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.cuda_graphs import Graphs
from vilavt_toolkit.generation.flops import Costs
from vilavt_toolkit.generation.hidden_states import hidden_states
from vilavt_toolkit.generation.kv_cache import KeyValues
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.models.model import VisualChatModel

Rewrite = Callable[[int, tuple[int, ...]], tuple[int, ...]]
"""What the encoder is told instead of an inquiry: (number of the session, its ids) -> ids. For ablations."""

_MOST = {"cpu": (2048, 4096)}
_MOST_ELSEWHERE = 16384, 131_072
"""Columns of one forward, padding counted, and patches of one packed call, by device, if one dialogue has no more.

What activations take stays bounded; on a CPU they stay within its caches, and larger batches are slower per token.
"""


class Reader:
    """Reads for seats whose rows stand in one cache."""

    def __init__(
        self,
        model: VisualChatModel,
        cache: KeyValues,
        costs: Costs,
        rewrite: Rewrite | None = None,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.model, self.cache, self.costs = model, cache, costs
        self._rewrite = rewrite
        self._needs = needs
        self._most_columns, self._most_patches = _MOST.get(cache.device.type, _MOST_ELSEWHERE)

    # --- Whole turns -----------------------------------------------------------------------------------------------

    def read(self, seats: Sequence[Seat]) -> dict[Seat, tuple[Tensor, Tensor | None]]:
        """Read what is new in the trajectories of seats: logits [V] behind it, and the hidden state [D] if needed.

        Seats for which that fails get their error and no result; the others are none the worse for it.
        """
        twins = self._twins(seats)
        features = self._encode([seat for seat in twins if seat.error is None])
        found: dict[Seat, tuple[Tensor, Tensor | None]] = {}
        for chunk in self._chunks([seat for seat in twins if seat.error is None]):
            found |= self._prefill_safely(chunk, features)
        for seat, others in twins.items():
            for other in others:
                self._share(seat, other, found)
        return found

    def _twins(self, seats: Sequence[Seat]) -> dict[Seat, list[Seat]]:
        """Seats that begin with the very same prompt, such as the rollouts of one, under the first of each."""
        first: dict[object, Seat] = {}
        twins: dict[Seat, list[Seat]] = {}
        for seat in seats:
            trajectory = seat.session.trajectory
            if self.cache.lengths[seat.row]:
                twins[seat] = []
                continue
            inquiries = tuple(self._inquiry(seat, group.ids) for group in trajectory.groups)
            key = tuple(trajectory.ids), tuple(id(view) for view in seat.session.views), inquiries
            leader = first.setdefault(key, seat)
            twins.setdefault(leader, []).extend([] if leader is seat else [seat])
        return twins

    def _share(self, seat: Seat, other: Seat, found: dict[Seat, tuple[Tensor, Tensor | None]]) -> None:
        """Give another seat what a twin has read."""
        if seat.error is not None:
            other.fail(seat.error)
            return
        self.cache.copy_row(self.cache, seat.row, other.row)
        found[other] = found[seat]
        other.spend(seat.session.spent)
        other.features += seat.features[len(other.features) :]

    def _chunks(self, seats: Sequence[Seat]) -> Iterator[list[Seat]]:
        """Seats of like lengths together, so that little is padding."""
        chunk: list[Seat] = []
        for seat in sorted(seats, key=self._unread):
            if chunk and self._unread(seat) * (len(chunk) + 1) > self._most_columns:
                yield chunk
                chunk = []
            chunk.append(seat)
        if chunk:
            yield chunk

    def _unread(self, seat: Seat) -> int:
        return len(seat.session.trajectory.ids) - self.cache.lengths[seat.row]

    def _prefill_safely(
        self, seats: list[Seat], features: dict[Seat, Tensor]
    ) -> dict[Seat, tuple[Tensor, Tensor | None]]:
        """Prefill seats together; where that fails, each alone, so that only those fail that must."""
        try:
            return self._prefill(seats, features)
        except Exception as error:
            if len(seats) == 1:
                seats[0].fail(error)
                return {}
        found: dict[Seat, tuple[Tensor, Tensor | None]] = {}
        for seat in seats:
            found |= self._prefill_safely([seat], features)
        return found

    def _prefill(self, seats: list[Seat], features: dict[Seat, Tensor]) -> dict[Seat, tuple[Tensor, Tensor | None]]:
        language_model, cache, device = self.model.language_model, self.cache, self.model.device
        counts = [self._unread(seat) for seat in seats]
        length = max(counts)
        ids = torch.full((len(seats), length), language_model.placeholder)
        positions = torch.zeros(language_model.axes, len(seats), length, dtype=torch.long)
        slots: list[Tensor] = []
        for index, (seat, count) in enumerate(zip(seats, counts, strict=True)):
            trajectory, read = seat.session.trajectory, cache.lengths[seat.row]
            ids[index, length - count :] = torch.tensor(trajectory.ids[read:])
            positions[:, index, length - count :] = trajectory.positions(language_model, read, cache.free[seat.row])
            offset = index * length + length - count - read
            new = (region for region in trajectory.regions if region.start >= read)
            slots += [torch.arange(offset + r.start, offset + r.start + r.count) for r in new]
        given = [features[seat] for seat in seats if seat in features]
        if given:
            embedded = self.model.embed(ids.to(device), torch.cat(slots).to(device), torch.cat(given))
        else:
            embedded = language_model.embed(ids.to(device))
        rows = [seat.row for seat in seats]
        extension = cache.extension(rows, counts, embedded.dtype)
        mask = (torch.arange(length) >= length - torch.tensor(counts)[:, None]).to(device)
        watching: AbstractContextManager[list[Tensor]] = nullcontext([])
        if "hidden" in self._needs:
            watching = hidden_states(language_model)
        with watching as seen:
            logits = language_model(embedded, positions.to(device), mask, extension, last=1)[:, -1]
        for seat, count in zip(seats, counts, strict=True):
            self._count(seat, count)
        cache.commit(rows, counts, (positions.amax((0, 2)) + 1).tolist())
        hidden = [state.float() for state in seen[0][:, -1]] if seen else [None] * len(seats)
        return {seat: (logits[index], hidden[index]) for index, seat in enumerate(seats)}

    def _count(self, seat: Seat, count: int) -> None:
        """Count what reading so many columns costs, before they are committed."""
        read = self.cache.lengths[seat.row]
        new = sum(region.count for region in seat.session.trajectory.regions if region.start >= read)
        # Of the model's own turn all but its last token was read when it was written, or is counted as written.
        produced = sum(seat.session.trajectory.produced[read:])
        flops = self.costs.reading(count, read)
        seat.spend(Spent(features=new, read=count - new - produced, flops=flops))

    # --- Regions ---------------------------------------------------------------------------------------------------

    def _encode(self, seats: Sequence[Seat]) -> dict[Seat, Tensor]:
        """The features [F, D] of the new regions of every seat that has some, encoded in packed calls."""
        found: dict[Seat, Tensor] = {}
        chunk: dict[Seat, list[int]] = {}
        patches, tokens = 0, self.model.encoder.encoder.tokens
        for seat in seats:
            numbers = self._new_regions(seat)
            more = sum(tokens(seat.session.views[number].size) for number in numbers)
            if chunk and patches + more > self._most_patches:
                found |= self._encode_safely(chunk)
                chunk, patches = {}, 0
            if numbers:
                chunk[seat] = numbers
                patches += more
        return found | self._encode_safely(chunk) if chunk else found

    def _encode_safely(self, new: dict[Seat, list[int]]) -> dict[Seat, Tensor]:
        """Encode regions of seats together; where that fails, each seat's alone, so that only those fail that must."""
        try:
            return self._encode_packed(new)
        except Exception as error:
            if len(new) == 1:
                next(iter(new)).fail(error)
                return {}
        found: dict[Seat, Tensor] = {}
        for seat, numbers in new.items():
            found |= self._encode_safely({seat: numbers})
        return found

    def _new_regions(self, seat: Seat) -> list[int]:
        read = self.cache.lengths[seat.row]
        return [number for number, region in enumerate(seat.session.trajectory.regions) if region.start >= read]

    def _encode_packed(self, new: dict[Seat, list[int]]) -> dict[Seat, Tensor]:
        views: list[View] = []
        groups: list[int] = []
        inquiries: list[tuple[int, ...]] = []
        for seat, numbers in new.items():
            trajectory, first = seat.session.trajectory, dict[int, int]()
            for number in numbers:
                group = trajectory.regions[number].group
                if group not in first:
                    first[group] = len(inquiries)
                    inquiries.append(self._inquiry(seat, trajectory.groups[group].ids))
                groups.append(first[group])
                views.append(seat.session.views[number])
        features = self.model.encode(views, groups, inquiries)
        counts = [
            sum(seat.session.trajectory.regions[number].count for number in numbers) for seat, numbers in new.items()
        ]
        whole = features.isfinite().all(-1).cpu().split_with_sizes(counts)
        found: dict[Seat, Tensor] = {}
        for (seat, numbers), part, finite in zip(new.items(), features.split_with_sizes(counts), whole, strict=True):
            if bool(finite.all()):
                found[seat] = part
                self._note(seat, numbers, part)
            else:
                seat.fail(InputError(_unfinite(seat, numbers, finite)))
        return found

    def _note(self, seat: Seat, numbers: Sequence[int], features: Tensor) -> None:
        """Note what encoding regions has cost, and their mean feature where a policy needs it."""
        trajectory, views = seat.session.trajectory, seat.session.views
        groups = [trajectory.regions[number].group for number in numbers]
        cost = self.costs.views([views[number] for number in numbers], groups)
        seat.spend(Spent(patches=cost.patches, flops=cost.flops))
        if "features" in self._needs:
            seat.features.append(features.float().mean(0).cpu())

    def _inquiry(self, seat: Seat, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self._rewrite(seat.number, ids) if self._rewrite is not None and ids else ids

    # --- Single tokens ---------------------------------------------------------------------------------------------

    def step(self, seats: Sequence[Seat], live: int) -> Tensor:
        """Read the last token of every draft: logits [live, V] of all rows, of which the others' mean nothing."""
        cache, ids = self.cache, [0] * live
        for seat in seats:
            assert seat.draft is not None
            ids[seat.row] = seat.draft.ids[-1]
        writing = [seat.row for seat in seats]
        cache.reserve(max(cache.lengths[:live]) + 1)
        if cache.graphs is None:
            # Not the cache itself: in a circle, what a chat holds would be given back when garbage is collected.
            cache.graphs = Graphs(self.model.language_model, weakref.proxy(cache))
        logits = cache.graphs.step(ids)
        if logits is None:
            logits = self._step(ids, writing)
        cache.commit(writing, [1] * len(writing), [cache.free[row] + 1 for row in writing])
        return logits

    def _step(self, ids: Sequence[int], writing: Sequence[int]) -> Tensor:
        language_model, cache, device, live = self.model.language_model, self.cache, self.model.device, len(ids)
        # Rows that do not write go along: what they add is not committed, and their next real column overwrites it.
        # Leaving them out would copy all the others' keys and values.
        positions = torch.tensor(cache.free[:live]).expand(language_model.axes, -1)[:, :, None]
        embedded = language_model.embed(torch.tensor(ids, device=device)[:, None])
        extension = cache.extension(range(live), [1] * live, embedded.dtype)
        mask = torch.zeros(live, 1, dtype=torch.bool).index_fill_(0, torch.tensor(writing), True)
        logits: Tensor = language_model(embedded, positions.to(device), mask.to(device), extension, last=1)[:, -1]
        return logits


def _unfinite(seat: Seat, numbers: Sequence[int], finite: Tensor) -> str:
    counts = [seat.session.trajectory.regions[number].count for number in numbers]
    parts: Iterable[tuple[int, Tensor]] = zip(numbers, finite.split_with_sizes(counts), strict=True)
    bad = [str(number) for number, part in parts if not bool(part.all())]
    return (
        f"the features of region {', '.join(bad)} are no finite numbers; look for weights that are none, "
        "or load the model in a type of a larger range (float32, bfloat16)."
    )
