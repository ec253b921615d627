"""The prompt of requests that are copies of one: encoded and read once, however many of them run at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vilavt_toolkit.contracts import Usage
from vilavt_toolkit.generation.kv_cache import CachedPrefix, KVCache

if TYPE_CHECKING:
    from vilavt_toolkit.generation.request import Request

Reading = tuple[Tensor, Tensor | None]
"""The result of reading a request: logits [V] after its last id, and its hidden state [D] if a policy needs it."""


@dataclass(frozen=True)
class _StoredReading:
    """Holds what a request has read, and what that has cost."""

    ids: tuple[int, ...]
    prefix: CachedPrefix
    reading: Reading
    spent: Usage
    features: tuple[Tensor, ...]


class SharedPrompt:
    """Holds what the first of `copies` requests has read, for the others, some of which get a slot much later.

    It is a copy, since the first one writes on in its own row. It is freed with the last request that waits for it.
    """

    def __init__(self, copies: int) -> None:
        self._waiting = copies
        self._stored: _StoredReading | None = None

    def store(self, request: Request, cache: KVCache, reading: Reading) -> None:
        """Keep what a request has just read, unless it is the last one."""
        self._waiting -= 1
        if self._waiting <= 0:
            return
        prefix = CachedPrefix(cache.device)
        prefix.store_row(cache, request.row)
        # Cloned, because they are views of a whole batch's.
        logits, hidden = reading
        own = logits.clone(), None if hidden is None else hidden.clone()
        ids, spent = tuple(request.session.trajectory.ids), request.session.spent
        self._stored = _StoredReading(ids, prefix, own, spent, tuple(request.features))

    def is_read(self, request: Request) -> bool:
        """Return True if a request that has read nothing can be given its reading."""
        return self._stored is not None and self._stored.ids == tuple(request.session.trajectory.ids)

    def give(self, request: Request, cache: KVCache) -> Reading:
        """Copy the reading into the row of a request, which is charged the same cost; return it."""
        stored = self._stored
        assert stored is not None
        stored.prefix.restore_row(cache, request.row)
        request.add_usage(stored.spent)
        request.features += stored.features[len(request.features) :]
        self._waiting -= 1
        if self._waiting <= 0:
            self._stored = None
        return stored.reading
