"""A stream of events for an event loop, which goes on while each of them is found."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress

from vilavt_toolkit.chat.events import Event
from vilavt_toolkit.errors import UsageError


class AsyncEvents:
    """The events of a stream, each found in a thread. Cancelled, or dropped, the stream is closed.

    No asynchronous generator: one that is left by `break` is closed some time later, and not before the next question.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events
        self._step: asyncio.Future[Event | None] | None = None

    def __aiter__(self) -> AsyncEvents:
        return self

    async def __anext__(self) -> Event:
        if self._step is not None and not self._step.done():
            raise UsageError("the stream is being waited for already; wait for its events one after the other.")
        # Not `to_thread`, whose task would be cancelled with all others while its thread goes on.
        step = self._step = asyncio.get_running_loop().run_in_executor(None, next, self._events, None)
        try:
            event = await asyncio.shield(step)
        except BaseException:
            await _over(step)
            self._events.close()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        # The thread lets go of the events a little later than it gives one, which would be too late.
        with suppress(ValueError):  # a step is under way: it lets go when it is over
            self._events.close()

    async def aclose(self) -> None:
        """Leave the stream: what it belongs to is taken back, unless it has come to its end."""
        if self._step is not None:
            await _over(self._step)
        self._events.close()


async def _over(step: asyncio.Future[Event | None]) -> None:
    """Wait for a step whose thread cannot be stopped, however often one is cancelled meanwhile."""
    while not step.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    if not step.cancelled():
        step.exception()  # that it was looked at keeps asyncio from warning
