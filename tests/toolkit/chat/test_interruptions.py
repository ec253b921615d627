"""Questions that are interrupted, or left before their end, are taken back whole, and chats answer on as before."""

from __future__ import annotations

import pytest
import torch

import vilavt_toolkit as vt
from vilavt_toolkit.chat.events import Answered, TokenWritten
from vilavt_toolkit.contracts import Turn

ANSWER = Turn("seen", answer="7")


def interrupted_after(model, monkeypatch, forwards: int) -> None:
    """Let the language model be interrupted in the middle of a forward."""
    forward, done = model.language_model.forward, []

    def interrupted(*given, **named):
        done.append(forward(*given, **named))
        if len(done) == forwards:
            raise KeyboardInterrupt
        return done[-1]

    monkeypatch.setattr(model.language_model, "forward", interrupted)


@pytest.mark.parametrize("forwards", [1, 3, 6, 9])
def test_an_interrupted_question_is_taken_back(chat, unharmed, monkeypatch, forwards):
    with unharmed(chat):
        interrupted_after(chat.model, monkeypatch, forwards)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("what is that?")
        monkeypatch.undo()


@pytest.mark.parametrize("place", range(4))
def test_a_cache_that_is_interrupted_while_it_grows_holds_what_it_held(
    tiny_model, picture, unharmed, monkeypatch, place
):
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(max_new_tokens=4))
    chat.ask("what is that?")
    made, zeros = [], torch.Tensor.new_zeros

    def interrupted(self, *given, **named):
        made.append(self)
        if len(made) == place + 1:
            raise KeyboardInterrupt
        return zeros(self, *given, **named)

    with unharmed(chat), monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_zeros", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("why?", images=[picture(1), picture(2)])


def test_an_interruption_in_who_listens_to_a_stream_takes_the_question_back(chat, unharmed):
    def listen() -> None:
        for number, event in enumerate(chat.stream("what is that?")):
            assert isinstance(event, TokenWritten)
            if number == 3:
                raise KeyboardInterrupt

    with unharmed(chat), pytest.raises(KeyboardInterrupt):
        listen()


@pytest.mark.parametrize("events", [1, 7, 12])
def test_a_stream_that_is_left_takes_the_question_back(chat, unharmed, events):
    with unharmed(chat):
        for number, _ in enumerate(chat.stream("what is that?"), 1):
            if number == events:
                break


def test_a_stream_that_is_left_at_its_answer_keeps_it(chat):
    for event in chat.stream("what is that?"):
        if isinstance(event, Answered):
            break
    assert chat.trajectory.questions[-1].text == "what is that?"
    assert event.answer.trajectory.ids == chat.trajectory.ids


def test_of_an_interrupted_batch_those_that_were_answered_keep_their_answers(
    tiny_model, says, picture, unharmed, monkeypatch
):
    says(tiny_model, {"short": [ANSWER]})
    chats = [vt.Chat(tiny_model, [picture(number)], vt.Decoding(max_new_tokens=40)) for number in range(4)]
    questions = ["short", "what?", "why?", "how?"]
    turn = len(tiny_model.language_model.tokenizer.encode(tiny_model.dialogue.write(ANSWER)))
    with unharmed(*chats[1:]):
        interrupted_after(tiny_model, monkeypatch, turn + 6)
        with pytest.raises(KeyboardInterrupt):
            vt.ask_all(list(zip(chats, questions, strict=True)), slots=2)
        monkeypatch.undo()
        says(tiny_model, {})
    assert chats[0].trajectory.answer == "7"


def test_an_interruption_while_the_mode_changes_leaves_the_mode(tiny_model, picture, monkeypatch):
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(max_new_tokens=2))
    part = next(iter(tiny_model.children()))
    part.train()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(tiny_model, "eval", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                chat.ask("what?")
        chat.ask("what?")
        assert part.training
    finally:
        tiny_model.eval()
