"""How turns are sampled: the next token of every row from its logits, and where a turn ends."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Tokenizer
from vilavt_toolkit.errors import UsageError

_NEVER = float("-inf")
_MOST_SEED = 1 << 43
"""Seeds of sessions are made from it by a product that a generator's 64 bits must hold."""


@dataclass(frozen=True)
class Decoding:
    """How turns are sampled. Order: penalty, grammar, temperature, top-k, top-p, as in transformers' `generate`."""

    max_new_tokens: int = 256
    """Per turn."""
    temperature: float = 0.0
    """0: the likeliest token."""
    seed: int = 0
    """Every session draws from its own generator, seeded by this and its number."""
    top_p: float = 1.0
    """The likeliest tokens that together have this probability are drawn from; 1: all."""
    top_k: int = 0
    """So many of the likeliest tokens are drawn from; 0: all."""
    repetition_penalty: float = 1.0
    """What the logits of tokens that the dialogue holds are divided by, negative ones multiplied; 1: nothing."""
    grammar: bool = False
    """Whether only turns that can be carried out can be written; needs the extra `grammar`."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "seed", "top_k", "temperature", "top_p", "repetition_penalty"):
            value, whole = getattr(self, name), name in ("max_new_tokens", "seed", "top_k")
            if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
                wanted = "a whole number" if whole else "a number"
                raise UsageError(f"decoding: {name} {value!r} makes no sense; it must be {wanted}.")
        if not isinstance(self.grammar, bool):
            raise UsageError(f"decoding: grammar {self.grammar!r} makes no sense; it must be True or False.")
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or a finite number above it"),
            ("seed", abs(self.seed) <= _MOST_SEED, f"between -{_MOST_SEED} and {_MOST_SEED}"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number above 0"),
        )
        for name, good, wanted in checks:
            if not good:
                raise UsageError(f"decoding: {name} {getattr(self, name)} makes no sense; it must be {wanted}.")


class Constraint(Protocol):
    """What a turn may be, token by token. One turn has one."""

    def mask(self, size: int) -> Tensor:
        """The tokens that may come next, one at least; bool [V] of `size` V, on the CPU."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind `token`, one of the mask's; raises ValueError for another."""
        ...


@dataclass
class Draw:
    """What a row is drawn with."""

    generator: torch.Generator
    """On the CPU; nobody else's, or what is drawn depends on neighbours."""
    seen: Sequence[int]
    """All ids of the dialogue so far: the memory of the penalty. Placeholders, never drawn, count for nothing."""
    constraint: Constraint | None = None
    """What may be drawn. That the token is accepted is up to the caller, as is what happens where that fails."""
    greedy: bool = False
    """Whether the likeliest token is taken whatever the temperature, and nothing drawn from the generator: a probe."""


def draw(logits: Tensor, draws: Sequence[Draw | None], decoding: Decoding) -> tuple[list[int], list[float]]:
    """A token of every row and its log-probability, from logits [B, V]. None: not drawn from, 0 and 0.0.

    The log-probability is the model's own at the sampling temperature (1 where the likeliest token is taken), in
    float32, before penalty, grammar, top-k and top-p: what a policy update computes again. It is NaN where a row's
    logits are. What a row draws depends on its own logits and generator alone. One synchronisation with the device.
    """
    if all(one is None for one in draws):
        return [0] * len(draws), [0.0] * len(draws)
    own = _at_temperature(logits.float(), draws, decoding).log_softmax(-1)
    tokens = (_allowed(logits, own, draws, decoding) - _races(logits, draws, decoding).log()).argmax(-1)
    drawn = own.gather(-1, tokens[:, None])[:, 0]
    # Float64 holds every id and every float32 exactly, so that both come over at once.
    ids, logprobs = torch.stack([tokens.double(), drawn.double()]).tolist()
    rows = [(0, 0.0) if one is None else (int(ids[n]), logprobs[n]) for n, one in enumerate(draws)]
    return [token for token, _ in rows], [logprob for _, logprob in rows]


def _at_temperature(logits: Tensor, draws: Sequence[Draw | None], decoding: Decoding) -> Tensor:
    """Logits [B, V] over the temperature; as they are where the likeliest token is taken."""
    if decoding.temperature == 0:
        return logits
    scaled = logits / decoding.temperature
    greedy = [one is not None and one.greedy for one in draws]
    if not any(greedy):
        return scaled
    return torch.where(_sent(torch.tensor(greedy), logits.device)[:, None], logits, scaled)


def _allowed(logits: Tensor, own: Tensor, draws: Sequence[Draw | None], decoding: Decoding) -> Tensor:
    """The log-weights [B, V] that tokens are drawn by, -inf where they are not; `own` where nothing is changed."""
    weights = own
    if decoding.repetition_penalty != 1:
        penalised = _penalised(logits.float(), draws, decoding.repetition_penalty)
        weights = _at_temperature(penalised, draws, decoding).log_softmax(-1)
    if any(one is not None and one.constraint is not None for one in draws):
        weights = weights.masked_fill(~_masks(draws, logits), _NEVER)
    if decoding.temperature > 0 and decoding.top_k:
        weights = _top_k(weights, decoding.top_k)
    if decoding.temperature > 0 and decoding.top_p < 1:
        weights = _top_p(weights, decoding.top_p)
    return weights


def _penalised(logits: Tensor, draws: Sequence[Draw | None], penalty: float) -> Tensor:
    """Logits [B, V] with those of seen tokens divided by the penalty where positive, multiplied where negative."""
    size = logits.shape[-1]
    seen = [row * size + token for row, one in enumerate(draws) if one is not None for token in set(one.seen)]
    if not seen:
        return logits
    places = _sent(torch.tensor(seen), logits.device)
    flat = logits.flatten()
    values = flat[places]
    values = torch.where(values < 0, values * penalty, values / penalty)
    return flat.scatter(0, places, values).view_as(logits)


def _masks(draws: Sequence[Draw | None], logits: Tensor) -> Tensor:
    """What each row's constraint allows, bool [B, V]; all where it has none."""
    masks = torch.ones(logits.shape, dtype=torch.bool)
    for mask, one in zip(masks, draws, strict=True):
        if one is not None and one.constraint is not None:
            mask.copy_(one.constraint.mask(logits.shape[-1]))
    return _sent(masks, logits.device)


def _top_k(weights: Tensor, k: int) -> Tensor:
    """Log-weights [B, V] of the k likeliest, and of what is as likely as the last of them; -inf elsewhere."""
    least = weights.topk(min(k, weights.shape[-1])).values[:, -1:]
    return weights.masked_fill(weights < least, _NEVER)


def _top_p(weights: Tensor, p: float) -> Tensor:
    """Log-weights [B, V] of the fewest likeliest that have probability `p` together, one at least; -inf elsewhere."""
    rising, order = weights.sort()
    out = rising.softmax(-1).cumsum(-1) <= 1 - p
    out[:, -1] = False
    return weights.masked_fill(out.scatter(-1, order, out), _NEVER)


def _races(logits: Tensor, draws: Sequence[Draw | None], decoding: Decoding) -> Tensor:
    """Numbers [B, V] from Exp(1) of the race that draws: argmax of p / e with e ~ Exp(1) is a draw from p.

    Ones, with which the likeliest wins, for rows that draw nothing: taking numbers from their generators would make
    their next turn depend on neighbours.
    """
    sampled = [n for n, one in enumerate(draws) if one is not None and not one.greedy and decoding.temperature > 0]
    if not sampled:
        return torch.ones(1, device=logits.device)
    # In float32 whatever the model computes in: in bf16 few tokens could ever win.
    races = torch.ones(logits.shape, dtype=torch.float32)
    for row in sampled:
        one = draws[row]
        assert one is not None
        races[row].exponential_(generator=one.generator)
    return _sent(races, logits.device)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device; from pinned memory, so that nobody waits for what the device still computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Endings:
    """Where a turn has ended: by its end-of-turn token, or a stop string, however that is split over tokens."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], end_of_turn: int) -> None:
        self._tokenizer, self._stops, self._end = tokenizer, tuple(stop_strings), end_of_turn
        # A token may be a single byte, and some tokenizers leave out a space before the first one.
        self._window = max((len(stop.encode()) for stop in self._stops), default=0) + 1
        self._may_end: dict[int, bool] = {}

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the turn of these ids, none of whose beginnings is complete, is; [] is not."""
        if not ids or ids[-1] == self._end:
            return bool(ids)
        if not self._can_end(ids[-1]):
            return False
        tail = self._tokenizer.decode(ids[-self._window :])
        return any(stop in tail for stop in self._stops)

    def _can_end(self, token: int) -> bool:
        """Whether a stop string can end within the token, so that few turns' texts are looked at."""
        if token not in self._may_end:
            text = self._tokenizer.decode([token])
            # What stands for a part of a letter may be the end of any.
            self._may_end[token] = "\ufffd" in text or any(_ends_in(stop, text) for stop in self._stops)
        return self._may_end[token]


def _ends_in(stop: str, text: str) -> bool:
    """Whether `stop` can end within `text`, having begun before it or not."""
    return stop in text or any(text.startswith(stop[place:]) for place in range(len(stop)))
