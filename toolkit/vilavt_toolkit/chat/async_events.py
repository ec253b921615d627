"""A stream of events for asyncio: the event loop goes on while the model computes."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress

from vilavt_toolkit.chat.events import Event
from vilavt_toolkit.errors import UsageError


class AsyncEvents:
    """The events of a stream, each computed in a thread. If it is cancelled or dropped, the stream is closed.

    It is no asynchronous generator: Python closes one that is left by `break` some time later, which may be after the
    chat's next question.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events
        self._step: asyncio.Future[Event | None] | None = None

    def __aiter__(self) -> AsyncEvents:
        return self

    async def __anext__(self) -> Event:
        if self._step is not None and not self._step.done():
            raise UsageError("the stream is being waited for already. Await its events one after the other.")
        # Not `to_thread`: its task would be cancelled with all others while its thread goes on.
        step = self._step = asyncio.get_running_loop().run_in_executor(None, next, self._events, None)
        try:
            # Shielded: a cancelled future would say that the step is over while its thread still holds the model.
            event = await asyncio.shield(step)
        except BaseException:
            await _wait_for_step(step)
            self._events.close()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        # The thread lets go of the generator a little after it gives an event, so dropping this object would not close
        # the generator at once, and the chat would still be busy.
        with suppress(ValueError):  # a step is running, and lets go when it is over
            self._events.close()

    async def aclose(self) -> None:
        """Leave the stream; its question is taken back unless the stream has come to its end."""
        if self._step is not None:
            await _wait_for_step(self._step)
        self._events.close()


async def _wait_for_step(step: asyncio.Future[Event | None]) -> None:
    """Wait for a step whose thread cannot be stopped, however often this task is cancelled meanwhile."""
    while not step.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    if not step.cancelled():
        step.exception()  # asyncio warns of an exception that nobody has asked for
