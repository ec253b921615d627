"""Asking: one question about images, or one question each to many chats at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from traceback import walk_tb
from types import FrameType
from typing import Any

from vilavt_toolkit.chat.answer import Answer, build_answer
from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.model_lock import eval_mode
from vilavt_toolkit.generation.request import Request
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
    questions: Iterable[tuple[Chat, str]], slots: int = 32, decoding: Decoding | None = None
) -> list[Answer | Exception]:
    """Ask many chats of one model a question each, `slots` at a time; return an answer or an exception for each.

    The answers are the same as one by one. No chat waits for another, and regions that several chats look at in the
    same step are encoded in one packed call. A chat whose question failed is as it was before. After an interruption
    the same holds for chats without an answer, and the others keep theirs. With `decoding`, its seed replaces the
    chats' own. Raises UsageError for chats that cannot be asked together.
    """
    if isinstance(questions, Chat):
        raise UsageError("ask_all takes pairs of a chat and its question. For one chat write chat.ask(question).")
    pairs = list(questions)
    if not pairs:
        return []
    _check_pairs(pairs)
    decoding_of_all = _common_decoding([chat for chat, _ in pairs], slots, decoding)
    answers: list[Answer | Exception | None] = [None] * len(pairs)
    open_questions: dict[int, ExitStack] = {}

    def open_requests() -> Iterator[Request]:
        # A generator, since the loop takes a request when a slot is free: a question that waits is not open yet, and
        # its chat holds neither views nor a row of the KV cache.
        for number, (chat, question) in enumerate(pairs):
            stack = ExitStack()
            try:
                stack.enter_context(chat.open_question(question))
            except Exception as error:
                answers[number] = error
                continue
            open_questions[number] = stack
            request = chat.make_request(decoding=decoding)
            request.number = number
            yield request

    model, handled = pairs[0][0].model, sys.exception()
    try:
        with eval_mode(model):
            for request in Loop(model, decoding_of_all).run_requests(open_requests(), min(slots, len(pairs))):
                answers[request.number] = _finish_question(open_questions.pop(request.number), request)
    except BaseException as stopped:
        for stack in open_questions.values():
            _close_question(stack, stopped)
        raise
    results = [answer for answer in answers if answer is not None]
    for answer in results:
        if isinstance(answer, Exception):
            _clear_frames(answer, handled)
    return results


def _check_pairs(pairs: Sequence[object]) -> None:
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], Chat):
            raise UsageError(f"item {number} given to ask_all is no pair. Write pairs like (chat, question).")


def _finish_question(question: ExitStack, request: Request) -> Answer | Exception:
    """Return the answer to a question; or the error it ended with, after taking the question back."""
    answer: Answer | Exception
    try:
        answer = request.error or build_answer(request.session.copy())
    except Exception as error:
        answer = error
    _close_question(question, answer if isinstance(answer, Exception) else None)
    return answer


def _clear_frames(error: BaseException | None, handled: BaseException | None) -> None:
    """Clear the local variables of all frames that an error's traceback holds, and those of its contexts.

    Errors are returned here, so a caller may keep one for long. Its traceback holds the frames of the loop, and with
    them the KV caches and views of all chats. Cleared, they are freed, and the traceback still prints. `handled` is
    the exception that the caller was handling when it asked: its frames are the caller's own, so they are left alone.
    """
    while error is not None and error is not handled:
        for frame, _ in walk_tb(error.__traceback__):
            # The traceback begins at the frame that caught the error. The frames that called it hold caches too.
            caller: FrameType | None = frame
            while caller is not None:
                with suppress(RuntimeError):  # a frame that is still running cannot be cleared
                    caller.clear()
                caller = caller.f_back
        error = error.__context__


def _close_question(question: ExitStack, error: BaseException | None) -> None:
    """Leave the context of a question; with an error, the question is taken back."""
    # `__exit__` instead of `with`, since the question was opened in the generator, and both may end in any order.
    try:
        question.__exit__(*((type(error), error, error.__traceback__) if error is not None else (None, None, None)))
    except BaseException as raised:
        if raised is not error:
            raise


def _common_decoding(chats: Sequence[Chat], slots: int, decoding: Decoding | None) -> Decoding:
    """Return the decoding that all chats share; raises UsageError for chats that cannot be asked together."""
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
        raise UsageError(f"slots {slots!r} is no whole number from 1. Write slots=32, or leave it out.")
    seen: dict[int, int] = {}
    for number, chat in enumerate(chats):
        if chat.model is not chats[0].model:
            raise UsageError(f"chat {number} has another model than chat 0. Call ask_all once for each model.")
        if (first := seen.setdefault(id(chat), number)) != number:
            raise UsageError(f"chat {number} is chat {first} again. Give chat.fork(), or ask the questions in turn.")
    if decoding is not None:
        return decoding
    for number, chat in enumerate(chats):
        # Seeds may differ: each request has a generator of its own.
        if replace(chat.decoding, seed=0) != replace(chats[0].decoding, seed=0):
            raise UsageError(f"chat {number} has another decoding than chat 0. Give ask_all(..., decoding=...).")
    return chats[0].decoding
