"""The two sides: the loop that keeps what it has read, and the plain one that reads everything again each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _chat_models import Script
from torch import Tensor

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.kv_cache import Kept, KeyValues
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.reader import Reader
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel

_LONGEST = 4096


@dataclass(frozen=True)
class Said:
    """What the model would have written at one place of a dialogue, and how sure it was."""

    token: int
    gap: float
    """Between its two best logits."""
    logits: Tensor | None


class Given(Loop):
    """The loop, with replies given: token by token as if they were sampled, or each at once, so that all is read."""

    def __init__(self, model: VisualChatModel, scripts: Sequence[Script], at_once: bool = False) -> None:
        super().__init__(model, Decoding(max_new_tokens=_LONGEST))
        self._scripts, self._at_once = scripts, at_once
        self.listens = False
        self.keeps_logits = False
        self.said: dict[int, list[Said]] = {}
        """What each dialogue would have said, where the loop listens."""

    def _draw(self, seats: list[Seat], logits: Tensor) -> tuple[list[int], list[float]]:
        if self.listens:
            self._listen(seats, logits)
        if self._at_once:
            return [self._whole(seat) for seat in seats], [0.0] * len(seats)
        _, logprobs = super()._draw(seats, logits)
        return [self._reply(seat)[len(seat.draft.ids)] for seat in seats if seat.draft is not None], logprobs

    def _reply(self, seat: Seat) -> Sequence[int]:
        return self._scripts[seat.number].replies[len(seat.session.trajectory.turns)]

    def _whole(self, seat: Seat) -> int:
        """All of a reply but its last token, which is returned: what is drawn ends the turn."""
        assert seat.draft is not None
        *seat.draft.ids, last = self._reply(seat)
        seat.draft.logprobs = [0.0] * len(seat.draft.ids)
        return last

    def _listen(self, seats: list[Seat], logits: Tensor) -> None:
        best = logits.float().topk(2, dim=-1)
        tokens, gaps = best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()
        kept = logits.float().cpu() if self.keeps_logits else [None] * len(seats)
        for seat, *said in zip(seats, tokens, gaps, kept, strict=True):
            self.said.setdefault(seat.number, []).append(Said(*said))

    def together(self) -> list[Session]:
        """Hold all dialogues at once."""
        seats = [Seat(script.session.copy(), number) for number, script in enumerate(self._scripts)]
        for seat in self.run_requests(seats, len(seats)):
            _whole(seat)
        return [seat.session for seat in seats]

    def alone_each(self, count: int | None = None) -> list[Session]:
        """Hold dialogues one by one, as a chat does; the first `count` of them."""
        seats = []
        for number, script in enumerate(self._scripts[:count]):
            seat = Seat(script.session.copy(), number, kept=Kept(self.model.device))
            for _ in self.run_one(seat):
                pass
            _whole(seat)
            seats.append(seat)
        return [seat.session for seat in seats]


class Again(Given):
    """The plain loop over the same weights: every turn encodes all images again and prefills the whole dialogue again.

    What it reads stays in the cache while a turn is written. Beside what it reads it is the very same loop.
    """

    def _reader(self, cache: KeyValues) -> Reader:
        return _Forgetful(self.model, cache, self._costs)


class _Forgetful(Reader):
    """A reader that begins anew with every turn."""

    def read(self, seats: Sequence[Seat]) -> dict[Seat, tuple[Tensor, Tensor | None]]:
        for seat in seats:
            self.cache.lengths[seat.row] = self.cache.free[seat.row] = 0
        return super().read(seats)


def _whole(seat: Seat) -> None:
    """Hold that a dialogue went as its script says."""
    if seat.error is not None:
        raise seat.error
    if seat.session.trajectory.why != "answered" or any(seat.session.trajectory.feedback):
        raise SystemExit(
            f"dialogue {seat.number} ended otherwise than its script: {seat.session.trajectory.why}, "
            f"{[said for said in seat.session.trajectory.feedback if said]}; mend benchmarks/_chat_models.py."
        )


def largest_difference(ours: Sequence[Said], theirs: Sequence[Said]) -> float:
    """The largest difference of two loops' logits at the same places."""
    found = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logits is not None and other.logits is not None
        finite = other.logits.isfinite()
        found = max(found, float((mine.logits[finite] - other.logits[finite]).abs().max()))
    return found


def differing(ours: Sequence[Said], theirs: Sequence[Said]) -> tuple[int, float]:
    """At how many places the likeliest tokens differ, and the largest gap between the two best logits at one."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token != b.token]
    return len(pairs), max((min(a.gap, b.gap) for a, b in pairs), default=0.0)


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
