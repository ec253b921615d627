"""The reader: prefills the language model with what is new in each dialogue, and encodes its new regions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Usage, View
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.cuda_graphs import CudaGraphs
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.generation.hidden_states import collect_hidden_states
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.generation.request import Request
from vilavt_toolkit.generation.shared_prompt import Reading
from vilavt_toolkit.models.model import VisualChatModel

InquiryRewrite = Callable[[int, tuple[int, ...]], tuple[int, ...]]
"""Replaces the inquiry ids given to the encoder (ablation arms `unmodulated`, `shuffled`): (number, ids) -> ids."""

_MOST = {"cpu": (2048, 4096)}
_MOST_ELSEWHERE = 16384, 131_072
"""Maximum columns of one forward, padding included, and maximum patches of one packed call, by device.

They bound the memory of activations. On a CPU, larger batches leave its caches and are slower per token. A dialogue
that has more on its own is still read at once.
"""


class Reader:
    """Reads for requests whose rows are in one KV cache."""

    def __init__(
        self,
        model: VisualChatModel,
        cache: KVCache,
        costs: CostCounter,
        rewrite: InquiryRewrite | None = None,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.model, self.cache, self.costs = model, cache, costs
        self._rewrite = rewrite
        self._needs = needs
        self._most_columns, self._most_patches = _MOST.get(cache.device.type, _MOST_ELSEWHERE)

    # --- Whole turns -----------------------------------------------------------------------------------------------

    def prefill(self, requests: Sequence[Request]) -> dict[Request, Reading]:
        """Read what is new in the trajectories of requests.

        A request for which that fails gets its error and no result. The others are not affected.
        """
        found = {request: reading for request in requests if (reading := self._take_shared_reading(request))}
        copies = _group_copies([request for request in requests if request not in found])
        # All regions are encoded before any id is read: packed calls may span requests of different chunks.
        features = self._encode_new_regions(list(copies))
        for chunk in self._split_into_chunks([request for request in copies if request.error is None]):
            found |= self._prefill_safely(chunk, features)
        for request, others in copies.items():
            self._share_reading(request, others, found)
        return found

    def _take_shared_reading(self, request: Request) -> Reading | None:
        """Copy what a copy of the request has read into its row. None if nothing was read for it, or it has that."""
        prompt = request.prompt
        if prompt is None or not prompt.is_read(request):
            return None
        request.prompt = None
        return prompt.give(request, self.cache)

    def _share_reading(self, request: Request, others: Sequence[Request], found: dict[Request, Reading]) -> None:
        """Keep what a request has read for its copies, and give it to those of this call; they share its error too."""
        if request.error is not None:
            for other in others:
                other.fail(request.error)
        elif request.prompt is not None:
            request.prompt.store(request, self.cache, found[request])
            request.prompt = None
            found |= {other: reading for other in others if (reading := self._take_shared_reading(other))}

    def _split_into_chunks(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Yield requests of similar unread length together, so that little is padding."""
        chunk: list[Request] = []
        for request in sorted(requests, key=self._count_unread):
            # Sorted in rising order, so the last one has the length that the whole chunk is padded to.
            if chunk and self._count_unread(request) * (len(chunk) + 1) > self._most_columns:
                yield chunk
                chunk = []
            chunk.append(request)
        if chunk:
            yield chunk

    def _count_unread(self, request: Request) -> int:
        return len(request.session.trajectory.ids) - self.cache.lengths[request.row]

    def _prefill_safely(self, requests: list[Request], features: dict[Request, Tensor]) -> dict[Request, Reading]:
        """Prefill requests together. If that fails, prefill each alone, so that only the faulty ones fail."""
        try:
            return self._prefill_chunk(requests, features)
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return {}
        found: dict[Request, Reading] = {}
        for request in requests:
            found |= self._prefill_safely([request], features)
        return found

    def _prefill_chunk(self, requests: list[Request], features: dict[Request, Tensor]) -> dict[Request, Reading]:
        """Read the unread ids of requests in one forward, padded on the left."""
        language_model, cache, device = self.model.language_model, self.cache, self.model.device
        counts = [self._count_unread(request) for request in requests]
        length = max(counts)
        ids = torch.full((len(requests), length), language_model.placeholder)
        positions = torch.zeros(language_model.axes, len(requests), length, dtype=torch.long)
        slots: list[Tensor] = []
        for index, (request, count) in enumerate(zip(requests, counts, strict=True)):
            trajectory, read = request.session.trajectory, cache.lengths[request.row]
            ids[index, length - count :] = torch.tensor(trajectory.ids[read:])
            positions[:, index, length - count :] = trajectory.positions(
                language_model, read, cache.next_positions[request.row]
            )
            # Slots are places in the flattened [n, L] batch: an id at `start` of the trajectory is `offset` further on.
            offset = index * length + length - count - read
            for region in trajectory.regions:
                if region.start >= read:
                    slots.append(torch.arange(offset + region.start, offset + region.start + region.count))
        given = [features[request] for request in requests if request in features]
        if given:
            embedded = self.model.embed(ids.to(device), torch.cat(slots).to(device), torch.cat(given))
        else:
            embedded = language_model.embed(ids.to(device))
        rows = [request.row for request in requests]
        update = cache.prepare_update(rows, counts, embedded.dtype)
        mask = (torch.arange(length) >= length - torch.tensor(counts)[:, None]).to(device)
        watching: AbstractContextManager[list[Tensor]] = nullcontext([])
        if "hidden" in self._needs:
            watching = collect_hidden_states(language_model)
        with watching as captured:
            logits = language_model(embedded, positions.to(device), mask, update, last=1)[:, -1]
        for request, count in zip(requests, counts, strict=True):
            self._add_reading_usage(request, count)
        cache.commit(rows, counts, (positions.amax((0, 2)) + 1).tolist())
        hidden = [state.float() for state in captured[0][:, -1]] if captured else [None] * len(requests)
        return {request: (logits[index], hidden[index]) for index, request in enumerate(requests)}

    def _add_reading_usage(self, request: Request, count: int) -> None:
        """Charge a request for reading so many columns. Called before they are committed."""
        read = self.cache.lengths[request.row]
        new = sum(region.count for region in request.session.trajectory.regions if region.start >= read)
        # Tokens of the model's own turn are charged as written, also the last one, which is read only here.
        produced = sum(request.session.trajectory.produced[read:])
        flops = self.costs.reading_flops(count, read)
        request.add_usage(Usage(features=new, read=count - new - produced, flops=flops))

    # --- Regions ---------------------------------------------------------------------------------------------------

    def _encode_new_regions(self, requests: Sequence[Request]) -> dict[Request, Tensor]:
        """Return the features [F, D] of the new regions of every request that has some, encoded in packed calls."""
        found: dict[Request, Tensor] = {}
        chunk: dict[Request, list[int]] = {}
        patches, tokens = 0, self.model.vision.backbone.token_count
        for request in requests:
            numbers = self._list_new_regions(request)
            more = sum(tokens(request.session.views[number].size) for number in numbers)
            # A request is never split: its features belong to one forward of the language model.
            if chunk and patches + more > self._most_patches:
                found |= self._encode_safely(chunk)
                chunk, patches = {}, 0
            if numbers:
                chunk[request] = numbers
                patches += more
        return found | self._encode_safely(chunk) if chunk else found

    def _encode_safely(self, new: dict[Request, list[int]]) -> dict[Request, Tensor]:
        """Encode the regions of requests together. If that fails, encode each request's alone, as in prefill."""
        try:
            return self._encode_packed(new)
        except Exception as error:
            if len(new) == 1:
                next(iter(new)).fail(error)
                return {}
        found: dict[Request, Tensor] = {}
        for request, numbers in new.items():
            found |= self._encode_safely({request: numbers})
        return found

    def _list_new_regions(self, request: Request) -> list[int]:
        read = self.cache.lengths[request.row]
        return [number for number, region in enumerate(request.session.trajectory.regions) if region.start >= read]

    def _encode_packed(self, new: dict[Request, list[int]]) -> dict[Request, Tensor]:
        """Encode the regions of requests, given by number, in one packed call. Return the features of each request."""
        views: list[View] = []
        groups: list[int] = []
        inquiries: list[tuple[int, ...]] = []
        for request, numbers in new.items():
            trajectory, first = request.session.trajectory, dict[int, int]()
            for number in numbers:
                group = trajectory.regions[number].group
                if group not in first:
                    first[group] = len(inquiries)
                    inquiries.append(self._rewritten_inquiry(request, trajectory.groups[group].ids))
                groups.append(first[group])
                views.append(request.session.views[number])
        features = self.model.encode(views, groups, inquiries)
        counts = []
        for request, numbers in new.items():
            counts.append(sum(request.session.trajectory.regions[number].count for number in numbers))
        # One transfer for all requests: each `.cpu()` waits for the device.
        whole = features.isfinite().all(-1).cpu().split_with_sizes(counts)
        found: dict[Request, Tensor] = {}
        for (request, numbers), part, finite in zip(new.items(), features.split_with_sizes(counts), whole, strict=True):
            if bool(finite.all()):
                found[request] = part
                self._add_encoding_usage(request, numbers, part)
            else:
                request.fail(InputError(_describe_nonfinite(request, numbers, finite)))
        return found

    def _add_encoding_usage(self, request: Request, numbers: Sequence[int], features: Tensor) -> None:
        """Charge a request for encoding regions, and keep their mean feature if a policy needs it."""
        trajectory, views = request.session.trajectory, request.session.views
        groups = [trajectory.regions[number].group for number in numbers]
        cost = self.costs.encoding_cost([views[number] for number in numbers], groups)
        request.add_usage(Usage(patches=cost.patches, flops=cost.flops))
        if "features" in self._needs:
            request.features.append(features.float().mean(0).cpu())

    def _rewritten_inquiry(self, request: Request, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self._rewrite(request.number, ids) if self._rewrite is not None and ids else ids

    # --- Single tokens ---------------------------------------------------------------------------------------------

    def decode_step(self, requests: Sequence[Request], live: int) -> Tensor:
        """Read the last token of every draft. Return logits [live, V], which are meaningless in other rows."""
        cache, ids = self.cache, [0] * live
        for request in requests:
            assert request.draft is not None
            ids[request.row] = request.draft.ids[-1]
        writing = [request.row for request in requests]
        cache.reserve_columns(max(cache.lengths[:live]) + 1)
        if cache.graphs is None:
            # A proxy: in a reference cycle with its graphs, a cache would keep its memory until garbage collection.
            cache.graphs = CudaGraphs(self.model.language_model, weakref.proxy(cache))
        logits = cache.graphs.run_step(ids)
        if logits is None:
            logits = self._decode_eagerly(ids, writing)
        cache.commit(writing, [1] * len(writing), [cache.next_positions[row] + 1 for row in writing])
        return logits

    def _decode_eagerly(self, ids: Sequence[int], writing: Sequence[int]) -> Tensor:
        """Read one token of every row without a CUDA graph; `writing` are the rows whose tokens count."""
        language_model, cache, device, live = self.model.language_model, self.cache, self.model.device, len(ids)
        # Rows that do not write take part too: what they add is not committed, and their next column overwrites it.
        # Leaving them out would copy the keys and values of all other rows.
        positions = torch.tensor(cache.next_positions[:live]).expand(language_model.axes, -1)[:, :, None]
        embedded = language_model.embed(torch.tensor(ids, device=device)[:, None])
        update = cache.prepare_update(range(live), [1] * live, embedded.dtype)
        mask = torch.zeros(live, 1, dtype=torch.bool).index_fill_(0, torch.tensor(writing), True)
        logits: Tensor = language_model(embedded, positions.to(device), mask.to(device), update, last=1)[:, -1]
        return logits


def _group_copies(requests: Sequence[Request]) -> dict[Request, list[Request]]:
    """Return every request to be read, with its copies among the others, which get what it has read.

    The rollouts of one prompt are such copies.
    """
    first: dict[object, Request] = {}
    copies: dict[Request, list[Request]] = {}
    for request in requests:
        leader = request
        if request.prompt is not None:
            leader = first.setdefault((request.prompt, tuple(request.session.trajectory.ids)), request)
        others = copies.setdefault(leader, [])
        if leader is not request:
            others.append(request)
    return copies


def _describe_nonfinite(request: Request, numbers: Sequence[int], finite: Tensor) -> str:
    """Return an error text that names the regions with NaN or infinite features; `finite` [F] is per feature."""
    counts = [request.session.trajectory.regions[number].count for number in numbers]
    parts: Iterable[tuple[int, Tensor]] = zip(numbers, finite.split_with_sizes(counts), strict=True)
    bad = [str(number) for number, part in parts if not bool(part.all())]
    return (
        f"the features of region {', '.join(bad)} are NaN or infinite. Check the weights, or load the model in a type "
        "with a larger range (float32, bfloat16)."
    )
