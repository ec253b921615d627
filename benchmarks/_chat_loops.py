"""The two sides of the chat's benchmark: the loop with a KV cache, and one that reads everything again each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _chat_models import Script
from torch import Tensor

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.kv_cache import CachedPrefix, KVCache
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.reader import Reader
from vilavt_toolkit.generation.request import Request
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel

_LONGEST = 4096


@dataclass(frozen=True)
class TokenChoice:
    """The token that the model would have written at one place of a dialogue."""

    token: int
    gap: float
    """Difference between its two best logits."""
    logits: Tensor | None


class ScriptedLoop(Loop):
    """The loop with given replies: token by token as if they were sampled, or each reply at once, to be read whole."""

    def __init__(self, model: VisualChatModel, scripts: Sequence[Script], at_once: bool = False) -> None:
        super().__init__(model, Decoding(max_new_tokens=_LONGEST))
        self._scripts, self._at_once = scripts, at_once
        self.records_choices = False
        self.records_logits = False
        self.choices: dict[int, list[TokenChoice]] = {}
        """The model's own tokens in each dialogue, if `records_choices`."""

    def _sample(self, requests: list[Request], logits: Tensor) -> tuple[list[int], list[float]]:
        if self.records_choices:
            self._record_choices(requests, logits)
        if self._at_once:
            return [self._write_whole_reply(request) for request in requests], [0.0] * len(requests)
        # Sampled all the same, so that the loop does all the work of writing, and then replaced by the script.
        _, logprobs = super()._sample(requests, logits)
        return [
            self._scripted_reply(request)[len(request.draft.ids)] for request in requests if request.draft is not None
        ], logprobs

    def _scripted_reply(self, request: Request) -> Sequence[int]:
        return self._scripts[request.number].replies[len(request.session.trajectory.turns)]

    def _write_whole_reply(self, request: Request) -> int:
        """Write all of a reply but its last token, which is returned and ends the turn as a sampled token does."""
        assert request.draft is not None
        *request.draft.ids, last = self._scripted_reply(request)
        request.draft.logprobs = [0.0] * len(request.draft.ids)
        return last

    def _record_choices(self, requests: list[Request], logits: Tensor) -> None:
        best = logits.float().topk(2, dim=-1)
        tokens, gaps = best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()
        kept = logits.float().cpu() if self.records_logits else [None] * len(requests)
        for request, *choice in zip(requests, tokens, gaps, kept, strict=True):
            self.choices.setdefault(request.number, []).append(TokenChoice(*choice))

    def run_together(self) -> list[Session]:
        """Run all dialogues at once."""
        requests = [Request(script.session.copy(), number) for number, script in enumerate(self._scripts)]
        for request in self.run_requests(requests, len(requests)):
            _check_outcome(request)
        return [request.session for request in requests]

    def run_one_by_one(self, count: int | None = None) -> list[Session]:
        """Run the first `count` dialogues one by one, as chats do."""
        requests = []
        for number, script in enumerate(self._scripts[:count]):
            request = Request(script.session.copy(), number, prefix=CachedPrefix(self.model.device))
            for _ in self.run_one(request):
                pass
            _check_outcome(request)
            requests.append(request)
        return [request.session for request in requests]


class RereadingLoop(ScriptedLoop):
    """The plain loop over the same weights: every turn encodes all images and prefills the whole dialogue again.

    The KV cache is kept only while a turn is written. Everything else is the same loop.
    """

    def _build_reader(self, cache: KVCache) -> Reader:
        return _RereadingReader(self.model, cache, self._costs)


class _RereadingReader(Reader):
    """A reader that empties the KV cache before every turn."""

    def prefill(self, requests: Sequence[Request]) -> dict[Request, tuple[Tensor, Tensor | None]]:
        for request in requests:
            self.cache.lengths[request.row] = self.cache.next_positions[request.row] = 0
        return super().prefill(requests)


def _check_outcome(request: Request) -> None:
    """Check that a dialogue went as its script says."""
    if request.error is not None:
        raise request.error
    if request.session.trajectory.why != "answered" or any(request.session.trajectory.feedback):
        feedback = [text for text in request.session.trajectory.feedback if text]
        raise SystemExit(
            f"dialogue {request.number} ended otherwise than its script: {request.session.trajectory.why}, {feedback}. "
            "Correct the script in benchmarks/_chat_models.py."
        )


def largest_difference(ours: Sequence[TokenChoice], theirs: Sequence[TokenChoice]) -> float:
    """Return the largest difference between the logits of two loops at the same places."""
    found = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logits is not None and other.logits is not None
        # Tokens that cannot be written have minus infinity on both sides, and their difference would be NaN.
        finite = other.logits.isfinite()
        found = max(found, float((mine.logits[finite] - other.logits[finite]).abs().max()))
    return found


def count_differences(ours: Sequence[TokenChoice], theirs: Sequence[TokenChoice]) -> tuple[int, float]:
    """Count the places where the likeliest tokens differ; returns also the largest gap of the best logits there."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token != b.token]
    return len(pairs), max((min(a.gap, b.gap) for a, b in pairs), default=0.0)


def free_memory(device: torch.device) -> None:
    """Give the memory that torch caches back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
