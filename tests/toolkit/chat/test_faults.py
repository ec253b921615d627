"""Bad input and faults: each is told in words, what was begun is taken back whole, and chats answer on as before."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.chat.events import RegionsShown, Rejected
from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.errors import InputError

SHORT = vt.Decoding(max_new_tokens=8)
ANSWER = Turn("seen", answer="7")


# --- What does not fit -------------------------------------------------------------------------------------------


def test_an_image_that_does_not_fit_is_not_added(chat, picture, unharmed, monkeypatch):
    with unharmed(chat), monkeypatch.context() as patched:
        patched.setattr(chat.model.language_model, "context_length", len(chat.trajectory.ids) + 30)
        with pytest.raises(InputError, match=r"does not fit: \d+ tokens are needed and 30 remain"):
            chat.add(picture(2))


@pytest.mark.parametrize("follows", [False, True], ids=["first", "follow-up"])
def test_a_question_that_does_not_fit_is_taken_back_with_its_images(chat_model, picture, unharmed, follows):
    chat = vt.Chat(chat_model, [picture(0)], SHORT)
    if follows:
        chat.ask("what?")
    with unharmed(chat), pytest.raises(InputError, match=r"the question does not fit: .* Shorten it"):
        chat.ask("what is that? " * 90, images=[picture(1), picture(2)])
    assert len(chat.session.sources) == 1


@pytest.mark.parametrize("question", [None, 7, b"what?", ["what?"]])
def test_a_question_that_is_no_text_is_told(chat, unharmed, question):
    with unharmed(chat), pytest.raises(InputError, match="a question must be a text, not"):
        chat.ask(question)


def test_an_image_that_cannot_be_opened_takes_those_before_it_back(chat, picture, unharmed, tmp_path):
    with unharmed(chat), pytest.raises(InputError, match=r"missing\.png does not exist"):
        chat.ask("what?", images=[picture(2), tmp_path / "missing.png"])
    assert len(chat.session.sources) == 2


def test_a_call_that_does_not_fit_is_not_carried_out_at_all_and_the_answer_is_demanded(
    chat_model, says, picture, look, read_as_at_once
):
    says(chat_model, {"what?": [look(*[(0, [0, 0, 2, 2])] * 16, inquiry="all of it"), ANSWER]})
    chat = vt.Chat(chat_model, [picture(0)], vt.Decoding(max_new_tokens=240))
    answer = chat.ask("what?")
    assert answer.text == "7" and answer.why == "the context is full"
    session = chat.session
    assert session.calls == 0 and answer.cost["regions"] == 1
    assert len(session.trajectory.regions) == len(session.views) == len(session.trajectory.groups) == 1
    assert session.trajectory.ids.count(chat_model.language_model.placeholder) == session.trajectory.regions[0].count
    read_as_at_once(chat, 100)


def test_a_context_that_is_full_says_so_and_a_fork_from_before_goes_on(tiny_model, picture):
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(max_new_tokens=60))
    forks = []
    with pytest.raises(InputError, match="does not fit"):
        for _ in range(20):
            forks.append(chat.fork())
            chat.ask("what?")
    assert len(chat.trajectory.ids) <= tiny_model.language_model.context_length
    assert forks[0].ask("what?").why


# --- Calls that nobody would make --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, _tiny_folder):
    """A model of a context that a call of 200 regions fits into, and what it would show does not."""
    return vt.build(_tiny_folder / "tiny.yaml", ["model.language_model.config.max_position_embeddings=4096"])


@pytest.mark.parametrize(("most", "told"), [(16, "a list of 1 to 16 regions"), (300, None)])
def test_a_call_of_200_regions_is_refused_in_words_or_for_want_of_room(
    wide_model, says, picture, look, monkeypatch, most, told
):
    dialogue = wide_model.dialogue
    monkeypatch.setattr(dialogue, "syntax", dataclasses.replace(dialogue.syntax, max_regions=most))
    turn = look(*[(0, [0, 0, 2, 2])] * 200)
    says(wide_model, {"what?": [turn, ANSWER]})
    length = len(wide_model.language_model.tokenizer.encode(dialogue.write(turn)))
    chat = vt.Chat(wide_model, [picture(0)], vt.Decoding(max_new_tokens=length + 20))
    events = list(chat.stream("what?"))
    assert not any(isinstance(event, RegionsShown) for event in events)
    assert events[-1].answer.text == "7"
    assert [told in event.problem for event in events if isinstance(event, Rejected)] == ([True] if told else [])
    assert len(chat.trajectory.regions) == 1 and len(chat.trajectory.groups) == 1
    assert events[-1].answer.why == ("answered" if told else "the context is full")


def test_a_zoom_into_a_zoom_goes_down_to_one_pixel_and_no_further(chat_model, says, picture, look, read_as_at_once):
    zooms = [look((index, [1, 1, 2, 2]), inquiry="") for index in range(4)]
    says(chat_model, {"a": [*zooms[:2], ANSWER], "b": [*zooms[2:], ANSWER]})
    chat = vt.Chat(chat_model, [picture(0)], vt.Decoding(max_new_tokens=40))
    chat.ask("a")
    events = list(chat.stream("b"))
    boxes = [region.box for region in chat.trajectory.regions[1:4]]
    assert boxes == [(16, 16, 32, 32), (20, 20, 24, 24), (21, 21, 22, 22)]
    assert chat.session.sources[0].crop(boxes[-1]).data.shape == (1, 1, 3)
    told = [event.problem for event in events if isinstance(event, Rejected)]
    assert "smaller than one pixel" in told[0]
    read_as_at_once(chat)


def test_a_generation_that_never_closes_a_tag_is_told_so_and_ends_without_an_answer(tiny_model, says, picture):
    says(tiny_model, {"what?": ["<think>" + "a" * 500]})
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    answer = chat.ask("what?")
    assert answer.text is None and "3 turns" in answer.why and str(answer) == f"(no answer: {answer.why})"
    assert [sum(turn) for turn in _own(chat)] == [8, 8, 8, 8]
    assert all("not in the right form" in told for told in chat.trajectory.feedback[:3])
    assert chat.ask("why?").trajectory.questions[-1].text == "why?"


def _own(chat) -> list[list[bool]]:
    starts = [*chat.trajectory.starts, len(chat.trajectory.ids)]
    return [chat.trajectory.produced[a:b] for a, b in pairwise(starts)]


@pytest.fixture(scope="module")
def film_model(_tiny_folder):
    """The model of the tiny recipe, with videos for originals."""
    return vt.build(_tiny_folder / "tiny.yaml", ["model.source.name=video", "model.source.frames=3"])


@pytest.mark.parametrize("now", [None, b"no video any more"], ids=["gone", "another file"])
def test_a_video_that_can_be_read_no_more_is_told_to_who_looks_closer(film_model, picture, unharmed, tmp_path, now):
    frames, path = [Image.fromarray(picture(number)) for number in range(9)], tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000)
    chat = vt.Chat(film_model, [path], SHORT)
    path.unlink() if now is None else path.write_bytes(now)
    with unharmed(chat):
        result = chat.call_tool({"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2], "time": 5}], "query": ""})
        assert "a.gif" in result.problem and "read" in result.problem


def test_a_video_of_no_frames_is_not_added(film_model, picture, unharmed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.gif").write_bytes(b"GIF89a")
    chat = vt.Chat(film_model, [np.stack([picture(0), picture(1)])], SHORT)
    chat.ask("what?")
    for nothing in (tmp_path / "empty", tmp_path / "cut.gif", np.zeros((0, 8, 8, 3), np.uint8)):
        with unharmed(chat.fork()), pytest.raises(InputError):
            chat.add(nothing)
    with unharmed(chat), pytest.raises(InputError, match="no frames"):
        chat.ask("and this?", images=[np.zeros((0, 8, 8, 3), np.uint8)])


# --- What is no number -------------------------------------------------------------------------------------------


def spoil_views(model, monkeypatch, spoil) -> None:
    """Let the encoder meet something at views with a bright first pixel: `spoil` is given their tokens."""
    encoder = model.vision.backbone
    embed = encoder.embed

    def spoiling(views, layout):
        tokens = embed(views, layout)
        parts = tokens.x.split_with_sizes(list(layout.partitions["region"]))
        spoiled = [spoil(part) if _bright(view) else part for view, part in zip(views, parts, strict=True)]
        return dataclasses.replace(tokens, x=torch.cat(spoiled))

    monkeypatch.setattr(encoder, "embed", spoiling)


def _bright(view) -> bool:
    return bool((view.data.flatten(1)[:, :4] == 255).all())


def bright(seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 200, (32, 32, 3), dtype=np.uint8)
    pixels[:1] = 255
    return pixels


def raising(part):
    raise RuntimeError("the encoder is out of sorts")


def not_a_number(part):
    return part * float("nan")


@pytest.mark.parametrize(
    ("spoil", "error"), [(not_a_number, "features of region 1 are NaN or infinite"), (raising, "out of sorts")]
)
def test_a_region_that_cannot_be_encoded_fails_its_question_and_nothing_else(
    tiny_model, picture, unharmed, monkeypatch, spoil, error
):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.ask("what?")
    with unharmed(chat):
        spoil_views(tiny_model, monkeypatch, spoil)
        with pytest.raises((InputError, RuntimeError), match=error):
            chat.ask("and this?", images=[bright(1)])
        monkeypatch.undo()


@pytest.mark.parametrize("spoil", [not_a_number, raising])
def test_of_many_only_the_chat_of_the_region_that_cannot_be_encoded_fails(
    tiny_model, picture, unharmed, monkeypatch, spoil
):
    def chats() -> list[vt.Chat]:
        return [vt.Chat(tiny_model, [bright(n) if n == 1 else picture(n, 32)], SHORT) for n in range(4)]

    asked = chats()
    with unharmed(asked[1]):
        spoil_views(tiny_model, monkeypatch, spoil)
        answers = vt.ask_all([(chat, "what?") for chat in asked], slots=3)
        monkeypatch.undo()
    assert [isinstance(answer, Exception) for answer in answers] == [False, True, False, False]
    for number, (answer, alone) in enumerate(zip(answers, chats(), strict=True)):
        if number != 1:
            assert answer.trajectory.ids == alone.ask("what?").trajectory.ids


def spoil_words(model, monkeypatch, word: str) -> None:
    """Let the embedding of the last token of a word be no number."""
    language_model = model.language_model
    token = language_model.tokenizer.encode(word)[-1]
    embed = language_model.embed

    def spoiling(ids):
        return torch.where((ids == token)[..., None], float("nan"), embed(ids))

    monkeypatch.setattr(language_model, "embed", spoiling)


def test_logits_that_are_no_numbers_fail_the_question(chat, unharmed, monkeypatch):
    with unharmed(chat):
        spoil_words(chat.model, monkeypatch, "%")
        with pytest.raises(InputError, match="logits are NaN or infinite"):
            chat.ask("what%")
        monkeypatch.undo()


def test_what_is_no_number_in_one_chat_never_reaches_another_that_takes_its_place(
    chat_model, picture, unharmed, monkeypatch
):
    questions = ["what is this, and what is that, and where is it?%", "what?", "where is it?", "why?", "how?%", "when?"]

    def chats() -> list[vt.Chat]:
        return [vt.Chat(chat_model, [picture(number)], SHORT) for number in range(6)]

    expected = [chat.ask(question).trajectory.ids for chat, question in zip(chats(), questions, strict=True)]
    asked = chats()
    spoiled = [asked[0], asked[4]]
    with unharmed(*spoiled):
        spoil_words(chat_model, monkeypatch, "%")
        answers = vt.ask_all(list(zip(asked, questions, strict=True)), slots=2)
        monkeypatch.undo()
    for number, (answer, ids) in enumerate(zip(answers, expected, strict=True)):
        if number in (0, 4):
            assert isinstance(answer, InputError) and "NaN or infinite" in str(answer)
        else:
            assert answer.trajectory.ids == ids


# --- Exceptions of one of many -----------------------------------------------------------------------------------


def crop_gone(chat, monkeypatch) -> None:
    def gone(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr(chat.session.sources[0], "crop", gone)


def crop_goes(chat, monkeypatch) -> None:
    """The second time it is cut, to be told of, no first."""
    crop, cut = chat.session.sources[0].crop, []

    def going(*given, **named):
        cut.append(given)
        if len(cut) > 1:
            raise OSError("the disk is gone")
        return crop(*given, **named)

    monkeypatch.setattr(chat.session.sources[0], "crop", going)


def policy_raises(chat, monkeypatch) -> None:
    policy = type(chat.model.policies[1])
    decide = policy.decide

    def deciding(self, state):
        if state.turns and state.turns[-1].thought == "boom":
            raise ZeroDivisionError("the policy is wrong")
        return decide(self, state)

    monkeypatch.setattr(policy, "decide", deciding)


def dialogue_raises(chat, monkeypatch) -> None:
    dialogue = chat.model.dialogue
    observation = dialogue.observation

    def observed(shown, inquiry):
        if inquiry == "mine":
            raise LookupError("the dialogue is wrong")
        return observation(shown, inquiry)

    monkeypatch.setattr(dialogue, "observation", observed)


FAULTS = [
    (crop_gone, OSError),
    (crop_goes, OSError),
    (policy_raises, ZeroDivisionError),
    (dialogue_raises, LookupError),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_an_exception_in_one_chat_of_many_is_its_own(
    tiny_model, says, picture, look, unharmed, monkeypatch, fault, error
):
    said = {f"q{n}": [look((0, [0, n, 2, 4])), ANSWER] for n in range(3)}
    said["mine"] = [look((0, [0, 0, 2, 2]), inquiry="mine", thought="boom"), ANSWER]
    says(tiny_model, said)
    decoding = vt.Decoding(max_new_tokens=40)

    def chats() -> list[vt.Chat]:
        return [vt.Chat(tiny_model, [picture(number)], decoding) for number in range(4)]

    questions = ["q0", "mine", "q1", "q2"]
    expected = [chat.ask(question).trajectory.ids for chat, question in zip(chats(), questions, strict=True)]
    asked = chats()
    with unharmed(asked[1]):
        with monkeypatch.context() as patched:
            fault(asked[1], patched)
            answers = vt.ask_all(list(zip(asked, questions, strict=True)))
        assert type(answers[1]) is error
        with monkeypatch.context() as patched:
            fault(asked[1], patched)
            with pytest.raises(error):
                asked[1].ask("mine")
    for number in (0, 2, 3):
        assert answers[number].text == "7" and answers[number].trajectory.ids == expected[number]


def test_a_question_that_cannot_be_opened_leaves_the_others_of_a_batch_alone(tiny_model, picture, unharmed):
    chats = [vt.Chat(tiny_model, [picture(number)], SHORT) for number in range(3)]
    questions = ["what?", "why? " * 200, "lone \udc80"]
    with unharmed(*chats[1:]):
        answers = vt.ask_all(list(zip(chats, questions, strict=True)))
    assert [type(answer) for answer in answers] == [vt.Answer, InputError, InputError]
    assert "does not fit" in str(answers[1]) and "no valid text" in str(answers[2])


def test_a_grammar_that_fails_in_one_chat_fails_that_one_alone(tiny_model, picture, unharmed, monkeypatch):
    class Constraint:
        def __init__(self, broken: bool) -> None:
            self._broken, self._taken = broken, 0

        def allowed_tokens(self, size):
            if self._broken and self._taken > 2:
                raise ArithmeticError("the grammar is wrong")
            return torch.arange(size) < 300

        def accept_token(self, token):
            self._taken += 1

    monkeypatch.setattr(
        "vilavt_toolkit.generation.constrained.turn_constraint",
        lambda model, session, answer_only: Constraint(session.trajectory.questions[-1].text == "mine"),
    )
    decoding = vt.Decoding(8, temperature=1.0, grammar=True)

    def chats() -> list[vt.Chat]:
        return [vt.Chat(tiny_model, [picture(number)], decoding) for number in range(3)]

    questions, asked = ["what?", "mine", "why?"], chats()
    with unharmed(asked[1]):
        answers = vt.ask_all(list(zip(asked, questions, strict=True)))
    assert type(answers[1]) is ArithmeticError
    for number, chat in enumerate(chats()):
        if number != 1:
            assert answers[number].trajectory.ids == chat.ask(questions[number]).trajectory.ids
