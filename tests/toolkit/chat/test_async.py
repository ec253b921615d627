"""Chats in an event loop: they take turns at the model, answer as alone, and are taken back when cancelled."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import vilavt_toolkit as vt
from vilavt_toolkit.chat.events import Answered, TokenWritten
from vilavt_toolkit.errors import InputError, UsageError

SHORT = vt.Decoding(max_new_tokens=8)


def chats(model, picture, count: int = 3) -> list[vt.Chat]:
    return [vt.Chat(model, [picture(number)], SHORT) for number in range(count)]


def slowly(model, monkeypatch) -> tuple[list[int], threading.Event]:
    """Let every forward take a while: how many were at it at once, and when the third one began."""
    forward, at_work, most, third = model.language_model.forward, [], [], threading.Event()

    def slow(*given, **named):
        at_work.append(1)
        most.append(len(at_work))
        if len(most) == 3:
            third.set()
        time.sleep(0.005)
        found = forward(*given, **named)
        at_work.pop()
        return found

    monkeypatch.setattr(model.language_model, "forward", slow)
    return most, third


def test_chats_in_one_event_loop_take_turns_and_answer_as_alone(tiny_model, picture, monkeypatch, read_as_at_once):
    expected = [chat.ask("what?").trajectory.ids for chat in chats(tiny_model, picture)]
    asked, order = chats(tiny_model, picture), []

    async def listen(number: int) -> list[int]:
        async for event in asked[number].stream_async("what?"):
            order.append(number)
            if isinstance(event, Answered):
                return event.answer.trajectory.ids
        raise AssertionError

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(listen(number) for number in range(3)))

    most, _ = slowly(tiny_model, monkeypatch)
    assert asyncio.run(all_of_them()) == expected
    assert max(most) == 1, "hooks and settings of a forward are the model's, so that two would disturb each other"
    assert order != sorted(order), "they went on by turns"
    for chat in asked:
        read_as_at_once(chat)


def test_forks_whose_first_chat_is_gone_may_be_asked_at_once(tiny_model, picture, monkeypatch, read_as_at_once):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.ask("what?")
    forks = [chat.fork() for _ in range(3)]
    del chat
    slowly(tiny_model, monkeypatch)

    async def both() -> list[vt.Answer]:
        return await asyncio.gather(*(fork.ask_async(f"why {n}?") for n, fork in enumerate(forks)))

    assert len({tuple(answer.trajectory.ids) for answer in asyncio.run(both())}) == 3
    for fork in forks:
        read_as_at_once(fork)


def test_of_two_questions_to_one_chat_at_once_the_second_is_refused(tiny_model, picture):
    chat, alone = chats(tiny_model, picture, 1)[0], chats(tiny_model, picture, 1)[0]

    async def both() -> list[vt.Answer | BaseException]:
        return await asyncio.gather(chat.ask_async("what?"), chat.ask_async("why?"), return_exceptions=True)

    answers = asyncio.run(both())
    (refused,) = [answer for answer in answers if not isinstance(answer, vt.Answer)]
    assert isinstance(refused, UsageError)
    question = chat.trajectory.questions[-1].text
    assert chat.trajectory.ids == alone.ask(question).trajectory.ids


@pytest.mark.parametrize("times", [1, 3])
def test_a_question_that_is_cancelled_is_taken_back(chat_model, picture, unharmed, monkeypatch, times):
    chat = vt.Chat(chat_model, [picture(0)], SHORT)
    chat.ask("what?")

    async def cancelled() -> None:
        asked = asyncio.create_task(chat.ask_async("why?"))
        await asyncio.to_thread(third.wait)
        for _ in range(times):
            asked.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asked

    with unharmed(chat):
        _, third = slowly(chat_model, monkeypatch)
        asyncio.run(cancelled())
        monkeypatch.undo()


def test_a_question_that_is_under_way_when_its_event_loop_ends_is_taken_back(
    tiny_model, picture, unharmed, monkeypatch
):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)

    async def leave() -> None:
        task = asyncio.create_task(chat.ask_async("why?"))
        await asyncio.to_thread(third.wait)
        assert not task.done()

    with unharmed(chat):
        _, third = slowly(tiny_model, monkeypatch)
        asyncio.run(leave())
        monkeypatch.undo()


def test_a_stream_that_is_left_by_break_is_taken_back_before_the_next_question(tiny_model, picture, unharmed):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)

    async def leave() -> None:
        async for event in chat.stream_async("why?"):
            assert isinstance(event, TokenWritten)
            break
        alone = chat.fork().ask("how?")
        stream = chat.stream_async("why?")
        await anext(stream)
        await stream.aclose()
        fork = chat.fork()
        assert (await fork.ask_async("how?")).trajectory.ids == alone.trajectory.ids

    with unharmed(chat):
        asyncio.run(leave())


def test_what_goes_wrong_reaches_who_waits(tiny_model, picture, unharmed):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    with unharmed(chat), pytest.raises(InputError, match="does not fit"):
        asyncio.run(chat.ask_async("why? " * 300))


def test_a_stream_that_is_closed_while_it_is_waited_for_is_taken_back(tiny_model, picture, unharmed, monkeypatch):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)

    async def leave() -> None:
        stream = chat.stream_async("why?")
        waits = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="waited for already"):
            await anext(stream)
        await stream.aclose()
        await waits
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    with unharmed(chat):
        slowly(tiny_model, monkeypatch)
        asyncio.run(leave())
        monkeypatch.undo()
