"""The chat: one conversation about images, in which nothing is computed twice."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vilavt_toolkit.chat import saving, tool
from vilavt_toolkit.chat.answer import Answer, answer_of
from vilavt_toolkit.chat.events import Answered, Event
from vilavt_toolkit.chat.streams import AsyncEvents
from vilavt_toolkit.contracts import Source, Trajectory
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.kv_cache import Kept
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.model_lock import evaluating
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel

_ASKING = "the chat is answering a question; let its stream end, or close it, before the next."


class Chat:
    """Holds what was shown and said, and what the language model has read of it. A question costs what is new in it.

    A question that fails, is interrupted, or is left before its end, is taken back whole: the chat is as before it.
    """

    def __init__(self, model: VisualChatModel, images: Any = (), decoding: Decoding = Decoding()) -> None:
        _check_model(model)
        if not isinstance(decoding, Decoding):
            raise UsageError(f"a chat takes a vt.Decoding, not {decoding!r}; write vt.Decoding(temperature=0.8).")
        self.model = model
        self.decoding = decoding
        self.session = Session(model, [])
        """The dialogue: sources, views, trajectory."""
        self.kept = Kept(model.device)
        """What the language model has read of it."""
        self._asking = Lock()
        self.session.add(*self._sources(images))

    @property
    def trajectory(self) -> Trajectory:
        """What was said and shown, token by token."""
        return self.session.trajectory

    def add(self, image: Any) -> int:
        """Add an original (path, PIL image, array, Source), to be shown with the next question; its number.

        Raises InputError, nothing added, where it cannot be opened or does not fit.
        """
        self._hold_still()
        self.session.add(*self._sources([image]))
        return len(self.session.sources) - 1

    def discard(self) -> int:
        """Take out the originals that no question has shown yet, as where they leave it no room; how many they were."""
        self._hold_still()
        waiting = len(self.session.sources) - self.session.announced
        del self.session.sources[self.session.announced :]
        return waiting

    # --- Asking ----------------------------------------------------------------------------------------------------

    def ask(self, question: str, images: Any = ()) -> Answer:
        """Ask a question about `images`, one or several, and whatever was shown before; raises InputError."""
        with self.question(question, images):
            for _ in Loop(self.model, self.decoding).run_one(self.seat()):
                pass
            return answer_of(self.session.copy())

    def stream(self, question: str, images: Any = ()) -> Generator[Event, None, None]:
        """Ask a question and tell what happens while it is answered, `Answered` at the end; raises InputError.

        The question begins with the first event. Left by `break`, or closed, it is taken back.
        """
        events: list[Event] = []
        with self.question(question, images):
            for _ in Loop(self.model, self.decoding).run_one(self.seat(events)):
                yield from events
                events.clear()
            answer = answer_of(self.session.copy())
        yield Answered(answer)

    async def ask_async(self, question: str, images: Any = ()) -> Answer:
        """`ask`, while the event loop goes on; cancelled before the answer is there, the question is taken back."""
        async for event in self.stream_async(question, images):
            if isinstance(event, Answered):
                return event.answer
        raise AssertionError("A stream ends with the answer.")

    def stream_async(self, question: str, images: Any = ()) -> AsyncEvents:
        """`stream`, while the event loop goes on; left or cancelled, the question is taken back."""
        return AsyncEvents(self.stream(question, images))

    def seat(self, events: list[Event] | None = None, decoding: Decoding | None = None) -> Seat:
        """The open question's place in a loop; what happens is put into `events`."""
        seed = (decoding or self.decoding).seed * 1_000_003 + len(self.trajectory.questions) - 1
        return Seat(self.session, seed=seed, kept=self.kept, emit=events.append if events is not None else None)

    @contextmanager
    def question(self, question: str, images: Any = ()) -> Iterator[None]:
        """Open a question, and take it back if what happens inside does not come to its end."""
        with self._whole(), evaluating(self.model):
            self.session.add(*self._sources(images))
            self.session.open(question)
            yield

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Take back all that happens inside if it does not come to its end."""
        if not self._asking.acquire(blocking=False):
            raise UsageError(_ASKING)
        try:
            session, kept = self.session, self.kept
            if kept.length > session.settled:
                kept.truncate(session.settled, kept.free - (kept.length - session.settled))
            mark, shown, read = session.mark(), len(session.sources), (kept.length, kept.free)
            try:
                yield
            except BaseException:
                session.rollback(mark)
                del session.sources[shown:]
                kept.truncate(*read)
                raise
        finally:
            self._asking.release()

    def _sources(self, images: Any) -> list[Source]:
        """One original, or an iterable of them, opened; raises InputError."""
        alone = isinstance(images, str | os.PathLike | np.ndarray | Source) or not isinstance(images, Iterable)
        # An array may be a buffer that its owner writes the next picture into.
        own = (image.copy() if isinstance(image, np.ndarray) else image for image in ([images] if alone else images))
        return [self.model.open_source(image) for image in own]

    def _hold_still(self) -> None:
        if self._asking.locked():
            raise UsageError(_ASKING)

    # --- As a tool -------------------------------------------------------------------------------------------------

    def tool_schema(self) -> dict[str, Any]:
        """The re-encoding as a function that another agent may call, in the JSON schema of function calling."""
        return tool.schema(self.session)

    def call_tool(self, arguments: str | Mapping[str, Any]) -> tool.ToolResult:
        """Carry out a call that another agent wrote, as JSON or read from it; what is wrong with it is in the result.

        What it shows joins the conversation, so that the next question may be about it.
        """
        return tool.call(self, arguments, self._whole)

    # --- Copies ----------------------------------------------------------------------------------------------------

    def fork(self) -> Chat:
        """Another chat that begins as this one; what was read is shared, and copied when both read on."""
        self._hold_still()
        other = Chat(self.model, decoding=self.decoding)
        other.session, other.kept = self.session.copy(), self.kept.fork()
        return other

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write what was said and shown into a folder, new or a chat's, not what was read of it; raises InputError."""
        self._hold_still()
        saving.save(self.session, self.decoding, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: VisualChatModel) -> Chat:
        """Read a chat that `save` wrote; the next question reads it all, once. Raises InputError."""
        _check_model(model)
        session, decoding = saving.load(Path(folder), model)
        chat = cls(model, decoding=decoding)
        chat.session = session
        return chat


def _check_model(model: object) -> None:
    if not isinstance(model, VisualChatModel):
        raise UsageError(f"a chat takes a model, not {str(model)!r}; vt.load loads one.")
