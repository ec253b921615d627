"""The loop: turns are sampled, regions encoded, observations added, until a stopping policy ends each dialogue.

Many dialogues go through together, each at its own turn: a step reads what is new in those that were given something,
writes one token of each, and lets those that are over make room for others. Nothing is read or encoded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.flops import Costs
from vilavt_toolkit.generation.kv_cache import Kept, KeyValues
from vilavt_toolkit.generation.model_lock import exclusively
from vilavt_toolkit.generation.reader import Reader, Rewrite
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.generation.sampling import Decoding, Draw, draw
from vilavt_toolkit.generation.turns import Turns
from vilavt_toolkit.models.model import VisualChatModel

__all__ = ["Decoding", "Loop", "Rewrite", "Seat"]

_PATIENCE = 4
"""Tokens that a dialogue waits for others to be read with it."""
_ENOUGH = 4
"""One in so many is enough to be read at once."""
_UNFINITE = (
    "the language model's logits are no finite numbers; look for weights that are none, or load the model in a type "
    "of a larger range (float32, bfloat16)."
)


class Loop:
    """Runs opened sessions to their end, in place."""

    def __init__(self, model: VisualChatModel, decoding: Decoding = Decoding(), rewrite: Rewrite | None = None) -> None:
        self.model = model
        self.decoding = decoding
        self.rewrite = rewrite
        self._costs = Costs(model)
        self._turns = Turns(model, decoding, self._costs)

    def run(self, sessions: Sequence[Session], seeds: Sequence[int] | None = None) -> None:
        """Let every session run until a policy stops it; `trajectory.why` says why it did.

        With `seeds`, one for each session's generator, what one draws does not depend on its place among the others.
        Raises the first error of a session.
        """
        for seat in self.run_sessions(sessions, max(1, len(sessions)), seeds):
            if seat.error is not None:
                raise seat.error

    def run_sessions(self, sessions: Iterable[Session], slots: int, seeds: Sequence[int] | None = None) -> Iterator[Seat]:
        """Run sessions, `slots` at a time, and give each as it ends, with its number and its error if it had one.

        Sessions are taken as there is room for them.
        """
        own = self.decoding.seed * 1_000_003
        seats = (
            Seat(session, number, own + number if seeds is None else seeds[number])
            for number, session in enumerate(sessions)
        )
        return self.run_requests(seats, slots)

    def run_requests(self, seats: Iterable[Seat], slots: int) -> Iterator[Seat]:
        """Run seats, `slots` at a time, and give each as it ends."""
        waiting, cache = iter(seats), KeyValues(slots, self.model.device)
        reader = self._reader(cache)
        live: list[Seat] = []
        while True:
            while len(live) < slots and (seat := next(waiting, None)) is not None:
                seat.row = len(live)
                with exclusively(self.model):
                    (seat.kept or Kept(self.model.device)).give(cache, seat.row)
                live.append(seat)
            if not live:
                return
            self._step(live, reader)
            for seat in [seat for seat in live if seat.over]:
                with exclusively(self.model):
                    if seat.kept is not None and seat.error is None:
                        seat.kept.take(cache, seat.row)
                    _leave(live, seat, cache)
                yield seat

    def run_one(self, seat: Seat) -> Iterator[None]:
        """Run one seat that keeps what it reads, a step at a time, until it is over; raises its error."""
        assert seat.kept is not None
        with exclusively(self.model):
            cache = seat.kept.writable()
        reader, seat.row = self._reader(cache), 0
        while not seat.over:
            self._step([seat], reader)
            yield
        with exclusively(self.model):
            _keep(seat, cache)

    def read(self, seat: Seat) -> None:
        """Read what is new in a dialogue and write nothing; raises what went wrong."""
        assert seat.kept is not None
        # Memory is taken inside too: that would break a step which another thread is capturing as a CUDA graph.
        with exclusively(self.model), torch.inference_mode():
            cache, seat.row = seat.kept.writable(), 0
            self._reader(cache).read([seat])
            _keep(seat, cache)

    def _reader(self, cache: KeyValues) -> Reader:
        return Reader(self.model, cache, self._costs, self.rewrite, self._turns.needs)

    def _step(self, live: list[Seat], reader: Reader) -> None:
        """Read what is new, then write one token of every dialogue."""
        with exclusively(self.model), torch.inference_mode():
            self._advance(live, reader)

    def _advance(self, live: list[Seat], reader: Reader) -> None:
        logits: dict[Seat, Tensor] = {}
        new = [seat for seat in live if seat.draft is None]
        if not _worthwhile(new, live):
            new = []
        new = [seat for seat in new if self._turns.ready(seat)]
        for seat, (after, hidden) in reader.read(new).items() if new else ():
            self._turns.begin(seat, reader.cache, after, hidden)
            if seat.draft is not None:
                logits[seat] = after
        writing = [seat for seat in live if seat.draft is not None and seat.draft.ids]
        if writing:
            read = reader.step(writing, len(live))
            logits |= {seat: read[seat.row] for seat in writing}
        # A turn that is written anew begins where its probe did.
        again = (seat for seat in live if seat.draft is not None and seat not in logits)
        logits |= {seat: seat.first_logits for seat in again if seat.first_logits is not None}
        if logits:
            self._write(list(logits), torch.stack(list(logits.values())), reader.cache)

    def _write(self, seats: list[Seat], logits: Tensor, cache: KeyValues) -> None:
        """Write a token of every seat, and finish the turns that it ends."""
        tokens, logprobs = self._draw_safely(seats, logits)
        for seat, token, logprob in zip(seats, tokens, logprobs, strict=True):
            if logprob != logprob:  # no number
                seat.fail(InputError(_UNFINITE))
            elif not seat.over:
                self._turns.add(seat, token, logprob, cache)

    def _draw_safely(self, seats: list[Seat], logits: Tensor) -> tuple[list[int], list[float]]:
        """Draw for seats together; where that fails, for each alone, so that only those fail that must."""
        try:
            return self._draw(seats, logits)
        except Exception as error:  # of a constraint, before anything was drawn
            if len(seats) == 1:
                seats[0].fail(error)
                return [0], [0.0]
        alone = [self._draw_safely([seat], row[None]) for seat, row in zip(seats, logits, strict=True)]
        return [tokens[0] for tokens, _ in alone], [logprobs[0] for _, logprobs in alone]

    def _draw(self, seats: list[Seat], logits: Tensor) -> tuple[list[int], list[float]]:
        """A token of every seat from its logits [n, V], with its log-probability."""
        draws = []
        for seat in seats:
            draft, seen = seat.draft, list[int]()
            assert draft is not None
            if self.decoding.repetition_penalty != 1:
                seen = seat.session.trajectory.ids + draft.ids
            draws.append(Draw(seat.generator, seen, draft.constraint, greedy=draft.probe))
        return draw(logits, draws, self.decoding)


def _keep(seat: Seat, cache: KeyValues) -> None:
    """Leave what a seat has read where it keeps it; raises what went wrong, nothing of it left."""
    assert seat.kept is not None
    if seat.error is not None:
        cache.clear(0, seat.kept.length)
        raise seat.error
    seat.kept.take(cache, 0)


def _worthwhile(new: list[Seat], live: list[Seat]) -> bool:
    """Whether to read what is new now. Few dialogues wait for more, some tokens long, while the others write.

    A forward over a few of many rows costs almost what one over more of them would.
    """
    for seat in new:
        seat.waited += 1
    now = len(new) == len(live) or _ENOUGH * len(new) >= len(live) or any(seat.waited > _PATIENCE for seat in new)
    if now:
        for seat in new:
            seat.waited = 0
    return now


def _leave(live: list[Seat], seat: Seat, cache: KeyValues) -> None:
    """Take a seat out; the last one takes its row, so that rows in use stand together."""
    if seat.error is not None:
        cache.clear(seat.row)
    last = live.pop()
    if last is not seat:
        cache.copy_row(cache, last.row, seat.row)
        last.row = seat.row
        live[live.index(seat)] = last
    cache.lengths[len(live)] = cache.free[len(live)] = 0
