"""Many chats at once answer as one by one, whatever the slots, and what they look at together is encoded together."""

from __future__ import annotations

import pytest

import vilavt_toolkit as vt
from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.errors import UsageError

ANSWER = Turn("seen", answer="7")
QUESTIONS = [
    "what?",
    "what shape is the blue object, and why do you think so?",
    "why?",
    "where is the red one?",
    "how?",
]


def chats(model, picture, decoding=vt.Decoding(10)) -> list[vt.Chat]:  # noqa: B008
    """Chats about no picture, one, or two, of several sizes."""
    shown = [[0], [], [1, 2], [3], [4]]
    return [vt.Chat(model, [picture(n, 40 + 8 * n) for n in numbers], decoding) for numbers in shown]


@pytest.mark.parametrize("slots", [pytest.param(1, marks=pytest.mark.nightly), 2, 32])
def test_greedy_answers_are_those_of_one_by_one_and_so_are_follow_ups(
    chat_model, picture, says, look, read_as_at_once, slots
):
    says(chat_model, {"why?": [look((1, [0, 2, 4, 4]), inquiry="blue")], "how?": [look((0, [0, 0, 2, 2]))]})
    together, alone = (chats(chat_model, picture, vt.Decoding(30)) for _ in range(2))
    for questions in (QUESTIONS, ["and?"] * 5):
        answers = vt.ask_all(list(zip(together, questions, strict=True)), slots)
        for chat, other, question, answer in zip(together, alone, questions, answers, strict=True):
            expected = other.ask(question)
            assert (answer.text, answer.why) == (expected.text, expected.why)
            assert answer.trajectory.ids == expected.trajectory.ids == chat.trajectory.ids
            assert answer.trajectory.logprobs == pytest.approx(expected.trajectory.logprobs, abs=1e-4)
            assert {**answer.cost, "seconds": 0} == pytest.approx({**expected.cost, "seconds": 0})
    for chat in together:
        read_as_at_once(chat)


def test_sampled_answers_are_those_of_one_by_one_with_the_same_seeds(chat_model, picture):
    decoding = vt.Decoding(10, temperature=1.0, seed=5)
    together, alone = (chats(chat_model, picture, decoding) for _ in range(2))
    answers = vt.ask_all(list(zip(together, QUESTIONS, strict=True)), 3)
    assert [answer.trajectory.ids for answer in answers] == [
        chat.ask(question).trajectory.ids for chat, question in zip(alone, QUESTIONS, strict=True)
    ]


def test_decoding_that_is_given_stands_in_for_the_chats_own_with_its_seed(tiny_model, picture):
    def ids(own: int, given: int) -> list[list[int]]:
        asked = chats(tiny_model, picture, vt.Decoding(8, seed=own))
        decoding = vt.Decoding(8, temperature=1.0, seed=given)
        return [one.trajectory.ids for one in vt.ask_all(zip(asked, QUESTIONS, strict=True), decoding=decoding)]

    assert ids(1, 3) == ids(2, 3) != ids(1, 4)


def test_what_several_chats_look_at_in_one_step_is_encoded_in_one_call(tiny_model, picture, says, look, monkeypatch):
    says(tiny_model, {f"q{n}": [look((0, [0, n, 2, 4]), (0, [n, 0, 4, 4])), ANSWER] for n in range(3)})
    encoded = []
    encode = type(tiny_model).encode

    def counting(self, views, groups, inquiries):
        encoded.append(len(views))
        return encode(self, views, groups, inquiries)

    monkeypatch.setattr(type(tiny_model), "encode", counting)
    asked = [(vt.Chat(tiny_model, [picture(n)], vt.Decoding(60)), f"q{n}") for n in range(3)]
    answers = vt.ask_all(asked)
    assert [answer.text for answer in answers] == ["7"] * 3
    assert encoded == [3, 6]


def test_forks_that_are_asked_the_same_read_it_once_and_each_goes_on_by_itself(tiny_model, picture, read_as_at_once):
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(8, temperature=1.0))
    forks = [chat.fork() for _ in range(4)]
    for number, fork in enumerate(forks):
        fork.decoding = vt.Decoding(8, temperature=1.0, seed=number)
    vt.ask_all([(fork, "what?") for fork in forks], 3)
    assert len({tuple(fork.trajectory.ids) for fork in forks}) > 1
    for fork in forks:
        read_as_at_once(fork)


def test_nobody_asked_is_nobody_answered():
    assert vt.ask_all([]) == []


def test_what_cannot_be_asked_together_is_refused_before_anything_is_asked(tiny_model, mrope_model, picture, unharmed):
    chat, other = vt.Chat(tiny_model, [picture(0)]), vt.Chat(tiny_model, decoding=vt.Decoding(3))
    cases = [
        ([(chat, "a"), (chat.fork(), "b"), (chat, "c")], {}, "chat 2 is chat 0 again"),
        ([(chat, "a"), (vt.Chat(mrope_model), "b")], {}, "chat 1 has another model"),
        ([(chat, "a"), (other, "b")], {}, "chat 1 has another decoding"),
        ([(chat, "a")], {"slots": 0}, "slots 0"),
        ([(chat, "a"), other], {}, "item 1 .* is no pair"),
    ]
    with unharmed(chat):
        for asked, options, told in cases:
            with pytest.raises(UsageError, match=told):
                vt.ask_all(asked, **options)


def test_what_is_no_chat_is_named(chat_model):
    chat = vt.Chat(chat_model)
    for asked in ([(chat_model, "what?")], [chat], chat):
        with pytest.raises(UsageError, match="pair"):
            vt.ask_all(asked)
    with pytest.raises(UsageError, match="slots '4'"):
        vt.ask_all([(chat, "what?")], slots="4")
