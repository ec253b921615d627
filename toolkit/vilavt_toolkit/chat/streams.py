"""A stream of events for an event loop, which goes on while each of them is found."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress

from vilavt_toolkit.chat.events import Event


class AsyncEvents:
    """The events of a stream, each found in a thread. Cancelled, or dropped, the stream is closed.

    No asynchronous generator: one that is left by `break` is closed some time later, and not before the next question.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncEvents:
        return self

    async def __anext__(self) -> Event:
        # Not `to_thread`, whose task would be cancelled with all others while its thread goes on.
        step = asyncio.get_running_loop().run_in_executor(None, next, self._events, None)
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
        self._events.close()


async def _over(step: asyncio.Future[Event | None]) -> None:
    """Wait for a step whose thread cannot be stopped, however often one is cancelled meanwhile."""
    while not step.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    step.exception()  # that it was looked at keeps asyncio from warning
