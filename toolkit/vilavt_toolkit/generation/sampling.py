"""Sampling: the next token of every row from its logits, and the end of a turn."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Tokenizer
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.utils.scalars import plain_scalar

_NEVER = float("-inf")
_MOST_SEED = 1 << 43
"""Limit of the seed: the seeds of sessions are a multiple of it that must fit into a generator's 64 bits."""


@dataclass(frozen=True)
class Decoding:
    """Settings of sampling. Order: penalty, grammar, temperature, top-k, top-p, as in transformers' `generate`."""

    max_new_tokens: int = 256
    """Maximum tokens of a turn."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token."""
    seed: int = 0
    """Seed of the run. Every session samples from its own generator, seeded by this and its number."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1: among all."""
    top_k: int = 0
    """Sample among so many of the likeliest tokens; 0: among all."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the dialogue holds; 1: no effect."""
    grammar: bool = False
    """True to sample only turns that can be carried out. Needs the extra `grammar`."""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, plain_scalar(getattr(self, each.name)))
        for name in ("max_new_tokens", "seed", "top_k", "temperature", "top_p", "repetition_penalty"):
            # YAML and JSON may give any type, and a bool is an int to Python.
            value, whole = getattr(self, name), name in ("max_new_tokens", "seed", "top_k")
            if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
                wanted = "a whole number" if whole else "a number"
                raise UsageError(f"decoding: {name} must be {wanted}, not {value!r}.")
        if not isinstance(self.grammar, bool):
            raise UsageError(f"decoding: grammar must be True or False, not {self.grammar!r}.")
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
                raise UsageError(f"decoding: {name} must be {wanted}, not {getattr(self, name)}.")


class Constraint(Protocol):
    """Restricts a turn token by token. Every turn has its own."""

    def allowed_tokens(self, size: int) -> Tensor:
        """Return the tokens that may come next, at least one: bool [V] with V = `size`, on the CPU."""
        ...

    def accept_token(self, token: int) -> None:
        """Add `token`, one of the allowed tokens. Raises ValueError for another."""
        ...


@dataclass
class RowSampling:
    """Settings and state of sampling for one row."""

    generator: torch.Generator
    """A CPU generator of this row alone; if it were shared, samples would depend on neighbours."""
    seen: Sequence[int]
    """All ids of the dialogue so far, for the repetition penalty. Placeholders are never sampled and do no harm."""
    constraint: Constraint | None = None
    """Restricts the token. The caller must pass the sampled token to `accept_token`."""
    greedy: bool = False
    """True to take the likeliest token at any temperature, and draw nothing from the generator (a probe)."""


def sample_tokens(
    logits: Tensor, rows: Sequence[RowSampling | None], decoding: Decoding
) -> tuple[list[int], list[float]]:
    """Sample a token of every row from logits [B, V]; return the tokens and their log-probabilities.

    A row whose entry is None is not sampled and gets 0 and 0.0. The log-probability is the model's own at the sampling
    temperature (1 for a greedy row), in float32, before penalty, grammar, top-k and top-p: a policy update computes
    the same number again. It is NaN if the row's logits are. A row's sample depends on its own logits and generator
    only. There is one synchronisation with the device.
    """
    if all(row is None for row in rows):
        return [0] * len(rows), [0.0] * len(rows)
    own = _apply_temperature(logits.float(), rows, decoding).log_softmax(-1)
    weights = _restrict_weights(logits, own, rows, decoding)
    # The exponential race in log space. Unlike `multinomial`, it samples every row from a generator of its own.
    tokens = (weights - _exponential_noise(logits, rows, decoding).log()).argmax(-1)
    drawn = own.gather(-1, tokens[:, None])[:, 0]
    # Float64 holds every id and every float32 exactly, so both are transferred at once.
    ids, logprobs = torch.stack([tokens.double(), drawn.double()]).tolist()
    found = [(0, 0.0) if row is None else (int(ids[n]), logprobs[n]) for n, row in enumerate(rows)]
    return [token for token, _ in found], [logprob for _, logprob in found]


def _apply_temperature(logits: Tensor, rows: Sequence[RowSampling | None], decoding: Decoding) -> Tensor:
    """Return logits [B, V] divided by the temperature, unchanged in greedy rows."""
    if decoding.temperature == 0:
        return logits
    scaled = logits / decoding.temperature
    greedy = [row is not None and row.greedy for row in rows]
    if not any(greedy):
        return scaled
    return torch.where(_to_device(torch.tensor(greedy), logits.device)[:, None], logits, scaled)


def _restrict_weights(logits: Tensor, own: Tensor, rows: Sequence[RowSampling | None], decoding: Decoding) -> Tensor:
    """Return the log-weights [B, V] to sample by, -inf for excluded tokens; `own` if nothing restricts them."""
    weights = own
    # The penalty comes first and the grammar before top-k and top-p, which must not be spent on forbidden tokens.
    if decoding.repetition_penalty != 1:
        penalised = _apply_penalty(logits.float(), rows, decoding.repetition_penalty)
        weights = _apply_temperature(penalised, rows, decoding).log_softmax(-1)
    if any(row is not None and row.constraint is not None for row in rows):
        weights = weights.masked_fill(~_collect_masks(rows, logits), _NEVER)
    if decoding.temperature > 0 and decoding.top_k:
        weights = _keep_top_k(weights, decoding.top_k)
    if decoding.temperature > 0 and decoding.top_p < 1:
        weights = _keep_top_p(weights, decoding.top_p)
    return weights


def _apply_penalty(logits: Tensor, rows: Sequence[RowSampling | None], penalty: float) -> Tensor:
    """Return logits [B, V] with the repetition penalty applied to seen tokens."""
    size = logits.shape[-1]
    seen = []
    for number, row in enumerate(rows):
        if row is not None:
            # A set: a token is penalised once, however often it was seen.
            seen += [number * size + token for token in set(row.seen)]
    if not seen:
        return logits
    places = _to_device(torch.tensor(seen), logits.device)
    flat = logits.flatten()
    values = flat[places]
    values = torch.where(values < 0, values * penalty, values / penalty)
    return flat.scatter(0, places, values).view_as(logits)


def _collect_masks(rows: Sequence[RowSampling | None], logits: Tensor) -> Tensor:
    """Return the tokens that each row's constraint allows, bool [B, V]; all tokens of a row without one."""
    masks = torch.ones(logits.shape, dtype=torch.bool)
    for mask, row in zip(masks, rows, strict=True):
        if row is not None and row.constraint is not None:
            mask.copy_(row.constraint.allowed_tokens(logits.shape[-1]))
    return _to_device(masks, logits.device)


def _keep_top_k(weights: Tensor, k: int) -> Tensor:
    """Return log-weights [B, V] of the k likeliest and of ties with the last of them; -inf elsewhere."""
    least = weights.topk(min(k, weights.shape[-1])).values[:, -1:]
    return weights.masked_fill(weights < least, _NEVER)


def _keep_top_p(weights: Tensor, p: float) -> Tensor:
    """Return log-weights [B, V] of the fewest likeliest with joint probability `p`, at least one; -inf elsewhere."""
    # In rising order, a token is out if it and all less likely ones together have at most 1 - p.
    rising, order = weights.sort()
    out = rising.softmax(-1).cumsum(-1) <= 1 - p
    out[:, -1] = False
    return weights.masked_fill(out.scatter(-1, order, out), _NEVER)


def _exponential_noise(logits: Tensor, rows: Sequence[RowSampling | None], decoding: Decoding) -> Tensor:
    """Return noise [B, V] from Exp(1): argmax of p / e with e ~ Exp(1) is a sample from p (an exponential race).

    Greedy rows get ones, with which the likeliest token wins. Their generators are not used, since that would make
    their next turn depend on neighbours.
    """
    sampled = [n for n, row in enumerate(rows) if row is not None and not row.greedy and decoding.temperature > 0]
    if not sampled:
        return torch.ones(1, device=logits.device)
    # In float32 whatever the model computes in: bf16 has too few values, and only few tokens could ever win.
    noise = torch.ones(logits.shape, dtype=torch.float32)
    for number in sampled:
        row = rows[number]
        assert row is not None
        noise[number].exponential_(generator=row.generator)
    return _to_device(noise, logits.device)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy CPU values to a device. Pinned memory makes the copy asynchronous: it does not wait for running kernels."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class StopCriteria:
    """Finds the end of a turn: its end-of-turn token, or a stop string, however that is split over tokens."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], end_of_turn: int) -> None:
        self._tokenizer, self._stops, self._end = tokenizer, tuple(stop_strings), end_of_turn
        # A stop string has at most one token per byte. One more, since some tokenizers drop the space of the first.
        self._window = max((len(stop.encode()) for stop in self._stops), default=0) + 1
        self._may_end: dict[int, bool] = {}

    def is_complete(self, ids: Sequence[int]) -> bool:
        """Return True if a turn is complete, given that no shorter prefix of it is; False for []."""
        if not ids or ids[-1] == self._end:
            return bool(ids)
        if not self._can_end(ids[-1]):
            return False
        tail = self._tokenizer.decode(ids[-self._window :])
        return any(stop in tail for stop in self._stops)

    def _can_end(self, token: int) -> bool:
        """Return True if a stop string can end within the token. This is cached, and saves decoding at most tokens."""
        if token not in self._may_end:
            text = self._tokenizer.decode([token])
            # A part of a character decodes to the replacement character, and may be the end of any string.
            self._may_end[token] = "\ufffd" in text or any(_can_end_within(stop, text) for stop in self._stops)
        return self._may_end[token]


def _can_end_within(stop: str, text: str) -> bool:
    """Return True if `stop` can end within `text`, wherever it begins."""
    return stop in text or any(text.startswith(stop[place:]) for place in range(len(stop)))
