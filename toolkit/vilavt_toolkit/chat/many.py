"""Many chats at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from traceback import walk_tb
from types import FrameType
from typing import TYPE_CHECKING

from vilavt_toolkit.chat.ask import Answer, answer_of
from vilavt_toolkit.chat.decoding import Decoding
from vilavt_toolkit.chat.loop import Loop
from vilavt_toolkit.chat.seat import Seat
from vilavt_toolkit.chat.shared import evaluating
from vilavt_toolkit.errors import UsageError

if TYPE_CHECKING:
    from vilavt_toolkit.chat.chat import Chat


def ask_many(
    asked: Sequence[tuple[Chat, str]], slots: int, decoding: Decoding | None = None
) -> list[Answer | Exception]:
    """Ask every chat its question; see `ask_all`."""
    if not asked:
        return []
    from vilavt_toolkit.chat.chat import Chat

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
            for seat in Loop(model, agreed).seated(seats(), min(slots, len(asked))):
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
