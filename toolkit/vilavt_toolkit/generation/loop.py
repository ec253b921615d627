"""The generation loop: turns are sampled, regions encoded, observations added, until a policy ends each dialogue.

Many dialogues run together, each at its own turn. A step reads what is new in those that wait to be read, samples one
token of each that writes, and lets those that are over make room for others. Nothing is read or encoded twice. The
transitions of a single dialogue are in `turns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.generation.kv_cache import CachedPrefix, KVCache
from vilavt_toolkit.generation.model_lock import model_lock
from vilavt_toolkit.generation.reader import InquiryRewrite, Reader
from vilavt_toolkit.generation.request import Phase, Request
from vilavt_toolkit.generation.sampling import Decoding, RowSampling, sample_tokens
from vilavt_toolkit.generation.shared_prompt import SharedPrompt
from vilavt_toolkit.generation.turns import Turns
from vilavt_toolkit.models.model import VisualChatModel

__all__ = ["Decoding", "InquiryRewrite", "Loop", "Request"]

_MAX_WAIT = 4
"""Steps for which a request waits until others can be read with it."""
_ENOUGH = 4
"""Requests are read at once if they are one in so many."""
_SEED_STRIDE = 1_000_003
"""Seeds of two runs differ by so much, so that no generator of one is seeded like one of the other."""
_NONFINITE_LOGITS = (
    "the language model's logits are NaN or infinite. Check its weights, or load it in a type with a larger range "
    "(float32, bfloat16)."
)


class Loop:
    """Runs sessions with an open question to their end, in place."""

    def __init__(
        self, model: VisualChatModel, decoding: Decoding = Decoding(), rewrite: InquiryRewrite | None = None
    ) -> None:
        self.model = model
        self.decoding = decoding
        self.rewrite = rewrite
        self._costs = CostCounter(model)
        self._turns = Turns(model, decoding, self._costs)

    def run(self, sessions: Sequence[Session], seeds: Sequence[int] | None = None) -> None:
        """Run every session until a policy stops it; `trajectory.why` holds the reason.

        `seeds` has one seed for each session's generator. With it, the samples of a session do not depend on its place
        among the others. Raises the first error of a session.
        """
        for request in self.run_sessions(sessions, max(1, len(sessions)), seeds):
            if request.error is not None:
                raise request.error

    def run_sessions(
        self, sessions: Iterable[Session], slots: int, seeds: Sequence[int] | None = None, copies: int = 1
    ) -> Iterator[Request]:
        """Run sessions, `slots` at a time, and yield each as it ends, with its number and its error if it had one.

        Sessions are taken from the iterable only as slots become free. Every `copies` sessions in a row are copies of
        one, and what that one shows and asks is encoded and read once.
        """
        return self.run_requests(self._build_requests(sessions, seeds, copies), slots)

    def _build_requests(
        self, sessions: Iterable[Session], seeds: Sequence[int] | None, copies: int
    ) -> Iterator[Request]:
        # A generator: a session opens its images only when a slot is free for it.
        base, prompt = self.decoding.seed * _SEED_STRIDE, None
        for number, session in enumerate(sessions):
            if copies > 1 and number % copies == 0:
                prompt = SharedPrompt(copies)
            yield Request(session, number, base + number if seeds is None else seeds[number], prompt=prompt)

    def run_requests(self, requests: Iterable[Request], slots: int) -> Iterator[Request]:
        """Run requests, `slots` at a time, and yield each as it ends."""
        waiting, cache = iter(requests), KVCache(slots, self.model.device)
        reader = self._build_reader(cache)
        live: list[Request] = []
        while True:
            while len(live) < slots and (request := next(waiting, None)) is not None:
                request.row = len(live)
                with model_lock(self.model):
                    (request.prefix or CachedPrefix(self.model.device)).restore_row(cache, request.row)
                live.append(request)
            if not live:
                return
            self._run_step(live, reader)
            for request in [request for request in live if request.is_over]:
                with model_lock(self.model):
                    if request.prefix is not None and request.error is None:
                        request.prefix.store_row(cache, request.row)
                    _remove_row(live, request, cache)
                # The lock is released before the yield: whoever takes the request may do anything with the model.
                yield request

    def run_one(self, request: Request) -> Iterator[None]:
        """Run one request that has a cached prefix, a step at a time, until it is over. Raises its error."""
        assert request.prefix is not None
        with model_lock(self.model):
            cache = request.prefix.open_for_writing()
        reader, request.row = self._build_reader(cache), 0
        while not request.is_over:
            self._run_step([request], reader)
            yield
        with model_lock(self.model):
            _store_prefix(request, cache)

    def prefill_one(self, request: Request) -> None:
        """Read what is new in a dialogue without sampling anything. Raises its error."""
        assert request.prefix is not None
        # The cache must be opened inside the lock too: an allocation breaks a CUDA graph that another thread captures.
        with model_lock(self.model), torch.inference_mode():
            cache, request.row = request.prefix.open_for_writing(), 0
            self._build_reader(cache).prefill([request])
            _store_prefix(request, cache)

    def _build_reader(self, cache: KVCache) -> Reader:
        return Reader(self.model, cache, self._costs, self.rewrite, self._turns.needs)

    def _run_step(self, live: list[Request], reader: Reader) -> None:
        """Read what is new, then sample one token of every dialogue that writes."""
        with model_lock(self.model), torch.inference_mode():
            self._advance_requests(live, reader)

    def _advance_requests(self, live: list[Request], reader: Reader) -> None:
        logits: dict[Request, Tensor] = {}
        unread = [request for request in live if request.is_reading]
        if unread and _should_prefill_now(unread, live):
            ready = [request for request in unread if self._turns.before_read(request)]
            for request, (last, hidden) in reader.prefill(ready).items():
                self._turns.start_turn(request, reader.cache, last, hidden)
                if request.draft is not None:
                    logits[request] = last
        writing = [request for request in live if request.draft is not None and request.draft.ids]
        if writing:
            read = reader.decode_step(writing, len(live))
            logits |= {request: read[request.row] for request in writing}
        for request in live:
            # The answer after an accepted probe is sampled from where the probe began, with nothing to read.
            if request.draft is not None and request not in logits:
                assert request.probe_context.first_logits is not None
                logits[request] = request.probe_context.first_logits
        if logits:
            self._write_tokens(list(logits), torch.stack(list(logits.values())), reader.cache)

    def _write_tokens(self, requests: list[Request], logits: Tensor, cache: KVCache) -> None:
        """Sample a token of every request from logits [n, V], and finish the turns that are complete."""
        tokens, logprobs = self._sample_safely(requests, logits)
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            if math.isnan(logprob):
                request.fail(InputError(_NONFINITE_LOGITS))
            elif not request.is_over:
                self._turns.add_token(request, token, logprob, cache)

    def _sample_safely(self, requests: list[Request], logits: Tensor) -> tuple[list[int], list[float]]:
        """Sample for requests together. If that fails, sample for each alone, so that only the faulty ones fail."""
        try:
            return self._sample(requests, logits)
        except Exception as error:
            # Constraints are asked before any generator draws, so sampling again repeats nothing.
            if len(requests) == 1:
                requests[0].fail(error)
                return [0], [0.0]
        tokens, logprobs = list[int](), list[float]()
        for request, row in zip(requests, logits, strict=True):
            own_tokens, own_logprobs = self._sample_safely([request], row[None])
            tokens += own_tokens
            logprobs += own_logprobs
        return tokens, logprobs

    def _sample(self, requests: list[Request], logits: Tensor) -> tuple[list[int], list[float]]:
        """Return a token of every request from its logits [n, V], and its log-probability."""
        rows = []
        for request in requests:
            draft, seen = request.draft, list[int]()
            assert draft is not None
            if self.decoding.repetition_penalty != 1:
                seen = request.session.trajectory.ids + draft.ids
            rows.append(RowSampling(request.generator, seen, draft.constraint, greedy=request.phase is Phase.PROBING))
        return sample_tokens(logits, rows, self.decoding)


def _store_prefix(request: Request, cache: KVCache) -> None:
    """Store what a request has read in its cached prefix. Raises its error, and then nothing of it is kept."""
    assert request.prefix is not None
    if request.error is not None:
        cache.clear_row(0, request.prefix.length)
        raise request.error
    request.prefix.store_row(cache, 0)


def _should_prefill_now(unread: list[Request], live: list[Request]) -> bool:
    """Return True if the requests with unread ids are read in this step.

    A few of many wait some steps for others while the rest writes: a forward over few rows costs almost as much as
    one over many.
    """
    for request in unread:
        request.steps_waited += 1
    # If nobody writes there is nothing to overlap with, so waiting would only cost time.
    now = len(unread) == len(live) or _ENOUGH * len(unread) >= len(live)
    now = now or any(request.steps_waited > _MAX_WAIT for request in unread)
    if now:
        for request in unread:
            request.steps_waited = 0
    return now


def _remove_row(live: list[Request], request: Request, cache: KVCache) -> None:
    """Remove a request. The last one takes its row, so that the rows in use stay contiguous."""
    if request.error is not None:
        cache.clear_row(request.row)
    last = live.pop()
    if last is not request:
        cache.copy_row(cache, last.row, request.row)
        last.row = request.row
        live[live.index(request)] = last
    cache.lengths[len(live)] = cache.next_positions[len(live)] = 0
