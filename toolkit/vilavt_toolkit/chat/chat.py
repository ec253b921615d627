"""The chat: one conversation about images, in which nothing is computed twice."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np

from vilavt_toolkit.chat import saving, tool
from vilavt_toolkit.chat.answer import Answer, build_answer
from vilavt_toolkit.chat.async_events import AsyncEvents
from vilavt_toolkit.chat.events import Answered, Event
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.contracts import Source, Trajectory
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.kv_cache import CachedPrefix
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.model_lock import eval_mode
from vilavt_toolkit.generation.request import Request
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel

_ASKING = "the chat is still answering a question. Let its stream end, or close it, before the next."


class Chat:
    """Holds what was shown and said, and the language model's KV cache of it. A question costs only what is new in it.

    A question that fails, is interrupted, or is left before its end, is taken back whole: the chat is as it was before.
    """

    def __init__(self, model: VisualChatModel, images: Any = (), decoding: Decoding = Decoding()) -> None:
        _check_model(model)
        if not isinstance(decoding, Decoding):
            raise UsageError(f"a chat takes a vt.Decoding, not {decoding!r}. Write vt.Decoding(temperature=0.8).")
        self.model = model
        self.decoding = decoding
        self.session = Session(model, [])
        """The dialogue: sources, views, trajectory."""
        self.cached_prefix = CachedPrefix(model.device)
        """The KV cache of the ids that the language model has read."""
        self._asking = Lock()
        self.session.add_sources(*self._open_sources(images))

    @property
    def trajectory(self) -> Trajectory:
        """The conversation so far, token by token."""
        return self.session.trajectory

    def add(self, image: Any) -> int:
        """Add an original (path, PIL image, array, Source) to be shown with the next question; return its number.

        Raises InputError and adds nothing if it cannot be opened or does not fit.
        """
        self._check_idle()
        self.session.add_sources(*self._open_sources([image]))
        return len(self.session.sources) - 1

    def discard(self) -> int:
        """Remove the originals that no question has shown yet, and return how many they were.

        This helps if they leave the next question no room in the context.
        """
        self._check_idle()
        waiting = len(self.session.sources) - self.session.sources_shown
        del self.session.sources[self.session.sources_shown :]
        return waiting

    # --- Asking ----------------------------------------------------------------------------------------------------

    def ask(self, question: str, images: Any = ()) -> Answer:
        """Ask a question about `images`, one or several, and all that were shown before; raises InputError."""
        with self.open_question(question, images):
            for _ in Loop(self.model, self.decoding).run_one(self.make_request()):
                pass
            # A copy: the next question changes the session, and the answer must not.
            return build_answer(self.session.copy())

    def stream(self, question: str, images: Any = ()) -> Generator[Event, None, None]:
        """Ask a question and yield what happens while it is answered, `Answered` at the end; raises InputError.

        The question begins with the first event. It is taken back if the stream is left by `break`, or closed.
        """
        events: list[Event] = []
        with self.open_question(question, images):
            for _ in Loop(self.model, self.decoding).run_one(self.make_request(events)):
                yield from events
                events.clear()
            answer = build_answer(self.session.copy())
        # Outside: whoever stops at this event has the answer, so the question must not be taken back.
        yield Answered(answer)

    async def ask_async(self, question: str, images: Any = ()) -> Answer:
        """Ask as `ask` does, while the event loop goes on. Cancelled before the answer, the question is taken back."""
        async for event in self.stream_async(question, images):
            if isinstance(event, Answered):
                return event.answer
        raise AssertionError("A stream ends with the answer.")

    def stream_async(self, question: str, images: Any = ()) -> AsyncEvents:
        """Stream as `stream` does, while the event loop goes on. If left or cancelled, the question is taken back."""
        return AsyncEvents(self.stream(question, images))

    def make_request(self, events: list[Event] | None = None, decoding: Decoding | None = None) -> Request:
        """Return the open question as a request of the generation loop; events are appended to `events`."""
        # Each question of a chat samples with another seed, and the n-th question of equal chats with the same one.
        seed = (decoding or self.decoding).seed * 1_000_003 + len(self.trajectory.questions) - 1
        return Request(
            self.session, seed=seed, prefix=self.cached_prefix, emit=events.append if events is not None else None
        )

    @contextmanager
    def open_question(self, question: str, images: Any = ()) -> Iterator[None]:
        """Write a question, and take it back if the block does not come to its end."""
        with self._take_back_on_error(), eval_mode(self.model):
            self.session.add_sources(*self._open_sources(images))
            self.session.ask(question)
            yield

    @contextmanager
    def _take_back_on_error(self) -> Iterator[None]:
        """Undo everything that the block does to session and KV cache if it does not come to its end."""
        if not self._asking.acquire(blocking=False):
            raise UsageError(_ASKING)
        try:
            session, prefix = self.session, self.cached_prefix
            # The tail of an unanswered user turn is written again with the next question. Its entries of the KV cache
            # go first: the mark below must name a length that stays valid.
            if prefix.length > session.fixed_length:
                removed = prefix.length - session.fixed_length
                prefix.truncate(session.fixed_length, prefix.next_position - removed)
            mark, sources = session.save_mark(), len(session.sources)
            length, next_position = prefix.length, prefix.next_position
            try:
                yield
            # GeneratorExit and KeyboardInterrupt too: a stream that is closed, and Ctrl-C.
            except BaseException:
                session.roll_back(mark)
                del session.sources[sources:]
                prefix.truncate(length, next_position)
                raise
        finally:
            self._asking.release()

    def _open_sources(self, images: Any) -> list[Source]:
        """Open one original or an iterable of them; raises InputError."""
        is_one = isinstance(images, str | os.PathLike | np.ndarray | Source) or not isinstance(images, Iterable)
        # An array may be a buffer that its owner writes the next picture into.
        own = (image.copy() if isinstance(image, np.ndarray) else image for image in ([images] if is_one else images))
        return [self.model.open_source(image) for image in own]

    def _check_idle(self) -> None:
        if self._asking.locked():
            raise UsageError(_ASKING)

    # --- As a tool -------------------------------------------------------------------------------------------------

    def tool_schema(self) -> dict[str, Any]:
        """Return the description of the zoom as a tool for another agent, in the JSON schema of function calling."""
        return tool.describe_tool(self.session)

    def call_tool(self, arguments: str | Mapping[str, Any]) -> tool.ToolResult:
        """Carry out a call that another agent wrote, as JSON or parsed; `problem` of the result says what is wrong.

        The regions that it shows join the conversation, so that the next question may be about them.
        """

        def read_new_ids() -> None:
            Loop(self.model, self.decoding).prefill_one(Request(self.session, prefix=self.cached_prefix))

        return tool.carry_out_call(self.session, arguments, self._take_back_on_error(), read_new_ids)

    # --- Copies ----------------------------------------------------------------------------------------------------

    def fork(self) -> Chat:
        """Return another chat that begins as this one. They share the KV cache, which is copied when both read on."""
        self._check_idle()
        other = Chat(self.model, decoding=self.decoding)
        other.session, other.cached_prefix = self.session.copy(), self.cached_prefix.fork()
        return other

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the conversation, without its KV cache, into a folder, new or a chat's; raises InputError."""
        self._check_idle()
        saving.save_chat(self.session, self.decoding, expand_home(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: VisualChatModel) -> Chat:
        """Load a chat that `save` wrote; the next question reads all of it, once. Raises InputError."""
        _check_model(model)
        session, decoding = saving.load_chat(expand_home(folder), model)
        chat = cls(model, decoding=decoding)
        chat.session = session
        return chat


def _check_model(model: object) -> None:
    if not isinstance(model, VisualChatModel):
        raise UsageError(f"a chat takes a model, not {str(model)!r}. Load one with vt.load(...).")
