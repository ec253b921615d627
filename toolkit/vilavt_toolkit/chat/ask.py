"""Asking: one question about images, or many chats at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from traceback import walk_tb
from types import FrameType
from typing import Any

from vilavt_toolkit.chat.answer import Answer, answer_of
from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.model_lock import evaluating
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel


def ask(
    images: Any,
    question: str,
    *,
    model: VisualChatModel,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """Ask one question about one original or a list of them (paths, PIL images, uint8 arrays); raises InputError."""
    originals = list(images) if isinstance(images, list | tuple) else [images]
    return Chat(model, originals, Decoding(max_new_tokens, temperature, seed)).ask(question)


def ask_all(
    asked: Iterable[tuple[Chat, str]], slots: int = 32, decoding: Decoding | None = None
) -> list[Answer | Exception]:
    """Ask many chats of one model a question each, `slots` at a time; an answer each, or what went wrong with it.

    The same answers as one by one. None waits for another, and regions that several look at in the same step are
    encoded in one packed call. A chat whose question failed is as it was before; interrupted, so are those that were
    not answered yet, and the others keep their answers. With `decoding`, its seed takes the place of the chats' own.
    """
    if isinstance(asked, Chat):
        raise UsageError("what is asked are pairs of a chat and its question; for one chat, chat.ask(question).")
    return ask_many(list(asked), slots, decoding)


def ask_many(
    asked: Sequence[tuple[Chat, str]], slots: int, decoding: Decoding | None = None
) -> list[Answer | Exception]:
    """Ask every chat its question; see `ask_all`."""
    if not asked:
        return []
    for number, pair in enumerate(asked):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], Chat):
            raise UsageError(f"place {number} of what is asked is no pair of a chat and its question; give such pairs.")
    agreed = _agreed([chat for chat, _ in asked], slots, decoding)
    answers: list[Answer | Exception | None] = [None] * len(asked)
    opened: dict[int, ExitStack] = {}

    def seats() -> Iterator[Seat]:
        for number, (chat, question) in enumerate(asked):
            stack = ExitStack()
            try:
                stack.enter_context(chat.question(question))
            except Exception as error:
                answers[number] = error
                continue
            opened[number] = stack
            seat = chat.seat(decoding=decoding)
            seat.number = number
            yield seat

    model, outer = asked[0][0].model, sys.exception()
    try:
        with evaluating(model):
            for seat in Loop(model, agreed).run_requests(seats(), min(slots, len(asked))):
                answers[seat.number] = _ended(opened.pop(seat.number), seat)
    except BaseException as stopped:
        for stack in opened.values():
            _close(stack, stopped)
        raise
    found = [answer for answer in answers if answer is not None]
    for answer in found:
        if isinstance(answer, Exception):
            _release(answer, outer)
    return found


def _ended(question: ExitStack, seat: Seat) -> Answer | Exception:
    """The answer that a question led to; or what went wrong with it, and the question is taken back."""
    answer: Answer | Exception
    try:
        answer = seat.error or answer_of(seat.session.copy())
    except Exception as error:
        answer = error
    _close(question, answer if isinstance(answer, Exception) else None)
    return answer


def _release(error: BaseException | None, outer: BaseException | None) -> None:
    """Let go of what the frames of an error hold, all chats' keys and values among it, as long as it is kept.

    `outer` is what was being handled when the chats were asked; its frames are the caller's.
    """
    while error is not None and error is not outer:
        for frame, _ in walk_tb(error.__traceback__):
            caller: FrameType | None = frame
            while caller is not None:
                with suppress(RuntimeError):  # it is still at work
                    caller.clear()
                caller = caller.f_back
        error = error.__context__


def _close(question: ExitStack, error: BaseException | None) -> None:
    """Let a question be over; with an error, taken back."""
    try:
        question.__exit__(*((type(error), error, error.__traceback__) if error is not None else (None, None, None)))
    except BaseException as raised:
        if raised is not error:
            raise


def _agreed(chats: Sequence[Chat], slots: int, decoding: Decoding | None) -> Decoding:
    """The decoding that all chats share; raises UsageError for what cannot be asked together."""
    if isinstance(slots, bool) or not isinstance(slots, int):
        raise UsageError(f"slots {slots!r} makes no sense; give a whole number, 1 or more.")
    if slots < 1:
        raise UsageError(f"slots {slots} leaves no chat a place; give 1 or more.")
    seen: dict[int, int] = {}
    for number, chat in enumerate(chats):
        if chat.model is not chats[0].model:
            raise UsageError(f"chat {number} has another model than chat 0; ask the chats of each model by themselves.")
        if (first := seen.setdefault(id(chat), number)) != number:
            raise UsageError(f"chat {number} is chat {first} again; ask it one question after the other, or a fork.")
    if decoding is not None:
        return decoding
    for number, chat in enumerate(chats):
        if replace(chat.decoding, seed=0) != replace(chats[0].decoding, seed=0):
            raise UsageError(f"chat {number} is decoded otherwise than chat 0; give `decoding` for all.")
    return chats[0].decoding
