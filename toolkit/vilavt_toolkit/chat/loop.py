"""The loop: turns are sampled, regions encoded, observations added, until a stopping policy ends each dialogue.

The cache is kept from turn to turn: no token is prefilled twice, no region is encoded twice. Many ragged dialogues go
through together; every packed encoding and every forward of the language model serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilavt_toolkit.chat.cache import RaggedCache
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, Turn
from vilavt_toolkit.dialogue.session import CallError, ContextFull, Session
from vilavt_toolkit.model import VisualChatModel

Rewrite = Callable[[int, tuple[int, ...]], tuple[int, ...]]
"""What the encoder is told instead of an inquiry: (number of the session, its ids) -> ids. For ablations."""


@dataclass(frozen=True)
class Decoding:
    """How turns are sampled."""

    max_new_tokens: int = 256
    """Per turn."""
    temperature: float = 0.0
    """0: the likeliest token."""
    seed: int = 0
    """Every session draws from its own generator, seeded by this and its number."""


class _Row:
    """What the loop knows of one running session."""

    def __init__(self, number: int, session: Session, seed: int) -> None:
        self.number = number
        self.session = session
        self.fed = 0
        """How many of the trajectory's ids the cache holds."""
        self.encoded = 0
        """How many of the trajectory's regions have been encoded."""
        self.demanded = ""
        """Why the answer was demanded; empty while it was not."""
        self.generator = torch.Generator().manual_seed(seed)


def _race(size: int, row: _Row, alive: bool) -> Tensor:
    """Draws [V] from Exp(1). A row that is done draws nothing, or its next turn would depend on its neighbours."""
    # In float32 whatever the model computes in: in bf16 few tokens could ever win.
    drawn = torch.ones(size, dtype=torch.float32)
    return drawn.exponential_(generator=row.generator) if alive else drawn


class Loop:
    """Runs opened sessions to their end, in place."""

    def __init__(self, model: VisualChatModel, decoding: Decoding = Decoding(), rewrite: Rewrite | None = None) -> None:
        self.model = model
        self.decoding = decoding
        self.rewrite = rewrite
        self._text_of: dict[int, str] = {}
        self._stops = model.dialogue.stop_strings
        self._window = max(len(stop) for stop in self._stops) + 1
        frames = model.language_model.frames
        demand = model.language_model.tokenizer.encode(f"{frames.following}{model.dialogue.demand()}{frames.reply}")
        # What a call must leave: the demand and a short answer. A whole longest turn could be all of a short context.
        self._reserve = min(decoding.max_new_tokens, model.language_model.context_length // 8) + len(demand) + 1

    @torch.inference_mode()
    def run(self, sessions: Sequence[Session], seeds: Sequence[int] | None = None) -> None:
        """Let every session run until a policy stops it; `trajectory.why` says why it did.

        With `seeds`, one for each session's generator, what one draws does not depend on its place among the others.
        """
        if not sessions:
            return
        own = seeds or [self.decoding.seed * 1_000_003 + number for number in range(len(sessions))]
        rows = [_Row(number, session, own[number]) for number, session in enumerate(sessions)]
        cache = RaggedCache(self.model.language_model, len(rows), self.model.device)
        while rows:
            logits = self._prefill(rows, cache)
            sampled = self._sample_turns(rows, cache, logits)
            going = [self._advance(row, *said) for row, said in zip(rows, sampled, strict=True)]
            if not all(going):
                kept = [index for index, alive in enumerate(going) if alive]
                rows = [rows[index] for index in kept]
                if rows:
                    cache.select(torch.tensor(kept, device=self.model.device))

    def _prefill(self, rows: Sequence[_Row], cache: RaggedCache) -> Tensor:
        """Feed every row what is new in its trajectory, left-padded; logits [B, V] after the last token."""
        news = [row.session.trajectory.ids[row.fed :] for row in rows]
        length = max(len(new) for new in news)
        ids = torch.full((len(rows), length), self.model.language_model.placeholder)
        valid = torch.zeros(len(rows), length, dtype=torch.bool)
        positions = torch.zeros(self.model.language_model.axes, len(rows), length, dtype=torch.long)
        for index, (row, new) in enumerate(zip(rows, news, strict=True)):
            ids[index, length - len(new) :] = torch.tensor(new)
            valid[index, length - len(new) :] = True
            positions[:, index, length - len(new) :] = row.session.trajectory.positions(
                self.model.language_model, row.fed
            )
        embeddings = self._embed(rows, ids)
        for row in rows:
            row.fed = len(row.session.trajectory.ids)
        return cache.extend(embeddings, valid.to(self.model.device), positions.to(self.model.device))

    def _embed(self, rows: Sequence[_Row], ids: Tensor) -> Tensor:
        """Embed new ids [B, L]; new regions of all rows are encoded in one packed call."""
        device, length = self.model.device, ids.shape[1]
        views, groups, slots = [], [], []
        inquiries: list[tuple[int, ...]] = []
        for index, row in enumerate(rows):
            trajectory = row.session.trajectory
            first_group: dict[int, int] = {}
            offset = index * length + length - len(trajectory.ids)
            for number in range(row.encoded, len(trajectory.regions)):
                region = trajectory.regions[number]
                if region.group not in first_group:
                    first_group[region.group] = len(inquiries)
                    inquiries.append(self._inquiry(row, trajectory.groups[region.group].ids))
                groups.append(first_group[region.group])
                views.append(row.session.views[number])
                slots.append(torch.arange(offset + region.start, offset + region.start + region.count))
            row.encoded = len(trajectory.regions)
        if not views:
            return self.model.language_model.embed(ids.to(device))
        features = self.model.encode(views, groups, inquiries)
        return self.model.embed(ids.to(device), torch.cat(slots).to(device), features)

    def _inquiry(self, row: _Row, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self.rewrite(row.number, ids) if self.rewrite is not None and ids else ids

    def _sample_turns(
        self, rows: Sequence[_Row], cache: RaggedCache, logits: Tensor
    ) -> list[tuple[list[int], list[float]]]:
        """Sample one turn of every row; a row that is done has holes while the others go on."""
        said: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
        limits = [min(self.decoding.max_new_tokens, row.session.room - 1) for row in rows]
        open_rows = [limit > 0 for limit in limits]
        while any(open_rows):
            tokens, logprobs = self._draw(rows, logits, open_rows)
            for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
                if open_rows[index]:
                    said[index][0].append(token)
                    said[index][1].append(logprob)
                    open_rows[index] = len(said[index][0]) < limits[index] and not self._complete(said[index][0])
            if any(open_rows):
                logits = self._step(rows, cache, tokens, open_rows)
        return said

    def _step(self, rows: Sequence[_Row], cache: RaggedCache, tokens: list[int], open_rows: list[bool]) -> Tensor:
        for row, alive in zip(rows, open_rows, strict=True):
            row.fed += alive
        device = self.model.device
        embeddings = self.model.language_model.embed(torch.tensor(tokens, device=device)[:, None])
        return cache.extend(embeddings, torch.tensor(open_rows, device=device)[:, None])

    def _draw(self, rows: Sequence[_Row], logits: Tensor, open_rows: list[bool]) -> tuple[list[int], list[float]]:
        """One token of every row, with its log-probability at the sampling temperature."""
        temperature = self.decoding.temperature
        scaled = logits.float() / temperature if temperature > 0 else logits.float()
        logprobs = scaled.log_softmax(-1)
        if temperature > 0:
            # The exponential race: argmax of p / e with e ~ Exp(1) is a draw from p, one generator per session.
            race = torch.stack(
                [_race(logits.shape[-1], row, alive) for row, alive in zip(rows, open_rows, strict=True)]
            ).to(logits.device)
            tokens = (logprobs - race.log()).argmax(-1)
        else:
            tokens = logprobs.argmax(-1)
        drawn = logprobs.gather(-1, tokens[:, None])[:, 0]
        return tokens.tolist(), drawn.tolist()

    def _complete(self, ids: list[int]) -> bool:
        """Whether a turn has ended: by its end-of-turn token, or by a stop string, however that is split."""
        if ids[-1] == self.model.language_model.end_of_turn:
            return True
        tokenizer, last = self.model.language_model.tokenizer, ids[-1]
        if last not in self._text_of:
            self._text_of[last] = tokenizer.decode([last])
        if not any(stop[-1] in self._text_of[last] for stop in self._stops):
            return False
        tail = tokenizer.decode(ids[-self._window :])
        return any(stop in tail for stop in self._stops)

    def _advance(self, row: _Row, ids: list[int], logprobs: list[float]) -> bool:
        """Record a row's turn and do what it asks; False when the dialogue has ended."""
        session, trajectory = row.session, row.session.trajectory
        if not ids:
            trajectory.why, trajectory.cut_short = "the context is full", True
            return False
        turn = session.sampled(ids, logprobs)
        if row.demanded:
            trajectory.why, trajectory.cut_short = row.demanded, True
            return False
        decision = self._decide(session)
        if decision.action == "stop":
            trajectory.why = decision.why
            return False
        if decision.action == "answer":
            row.demanded = decision.why
        try:
            self._reply(session, turn, demand=bool(row.demanded))
        except ContextFull:
            return self._demand_for_room(row)
        return True

    def _decide(self, session: Session) -> Decision:
        trajectory = session.trajectory
        encoded = sum(region.count for region in trajectory.regions)
        state = LoopState(tuple(trajectory.turns), session.calls, sum(trajectory.produced), encoded)
        decisions = (policy.decide(state) for policy in self.model.stopping)
        decision = next((decision for decision in decisions if decision.action != "go_on"), GO_ON)
        most = session.max_turns
        if decision.action == "go_on" and most is not None and len(trajectory.turns) >= most:
            return Decision("answer", f"the turns of its sample ({most}) are used up")
        return decision

    def _reply(self, session: Session, turn: Turn, demand: bool) -> None:
        problem = turn.problem or "You may look closer, or answer again."
        if turn.call is not None:
            try:
                session.carry_out(turn.call, self._reserve, demand)
                return
            except CallError as error:
                problem = str(error)
        session.feed_back(problem, self._reserve, demand)

    def _demand_for_room(self, row: _Row) -> bool:
        """What the turn asked for does not fit: nothing of it was added; the answer is demanded in what is left."""
        row.demanded = "the context is full"
        try:
            row.session.demand()
        except ContextFull:
            row.session.trajectory.why, row.session.trajectory.cut_short = row.demanded, True
            return False
        return True
