"""The chat: questions follow each other at the cost of what is new, fork, stream, and leave nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.chat.events import Answered, Demanded, RegionsShown, Rejected, TokenWritten, ToolCalled
from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.generation.kv_cache import KVCache

SHORT = vt.Decoding(max_new_tokens=12)
ANSWER = Turn("seen", answer="7")


def test_follow_up_questions_go_on_where_the_last_one_ended(chat_model, says, picture, look, read_as_at_once):
    says(
        chat_model,
        {
            "what digit is on the red square?": [look((0, [0, 0, 2, 2])), ANSWER],
            "and the blue one?": [look((1, [1, 1, 4, 4]), (2, [0, 0, 4, 2])), ANSWER],
        },
    )
    chat = vt.Chat(chat_model, [picture(0)])
    first = chat.ask("what digit is on the red square?")
    second = chat.ask("and the blue one?", images=[picture(1)])
    assert (first.text, second.text) == ("7", "7")
    assert [turn.regions[0].index for turn in second.trace.turns[:1]] == [3]
    assert second.cost["regions"] == 3 and first.cost["regions"] == 2
    assert second.cost["tokens_read"] < first.cost["tokens_read"] + 40
    assert len(first.trajectory.ids) < len(second.trajectory.ids) == len(chat.trajectory.ids)
    read_as_at_once(chat, 10)


def test_a_fork_goes_on_by_itself_and_so_does_what_it_was_forked_from(chat_model, picture, read_as_at_once):
    chat = vt.Chat(chat_model, [picture(0)], SHORT)
    chat.ask("what?")
    forks = [chat.fork(), chat.fork()]
    asked = [
        one.ask(question) for one, question in zip([forks[0], chat, forks[1]], ["why?", "how?", "why?"], strict=True)
    ]
    assert asked[0].trajectory.ids == asked[2].trajectory.ids != asked[1].trajectory.ids
    for one in (chat, *forks):
        read_as_at_once(one, 10)


def test_a_fork_copies_nothing_until_both_read_on(tiny_model, picture, monkeypatch):
    copied = []
    copy_row = KVCache.copy_row
    monkeypatch.setattr(KVCache, "copy_row", lambda self, *given: copied.append(self) or copy_row(self, *given))
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.ask("what?")
    fork = chat.fork()
    chat.ask("why?")
    assert not copied
    fork.ask("how?")
    assert len(copied) == 1
    only = fork.fork()
    del fork
    gc.collect()
    only.ask("when?")
    assert len(copied) == 1, "whose others are gone reads on in what they left"


def test_a_question_may_be_asked_of_a_fork_while_the_other_answers(tiny_model, picture, read_as_at_once):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    chat.ask("what?")
    forks = [chat.fork(), chat.fork()]
    stream = chat.stream("why?")
    for _ in range(5):
        next(stream)
    forks[0].ask("how?")
    (answer,) = vt.ask_all([(forks[1], "how?")])
    answers = [event.answer for event in stream if isinstance(event, Answered)]
    assert answer.trajectory.ids == forks[0].trajectory.ids
    assert answers[0].trajectory.ids == chat.trajectory.ids
    for one in (chat, *forks):
        read_as_at_once(one)


def test_a_stream_tells_what_happens_in_its_order(tiny_model, says, picture, look):
    broken = "<think>hm</think><tool>{]</tool>"
    says(tiny_model, {"what?": [look((0, [0, 0, 2, 2])), broken, look((1, [0, 0, 4, 4])), "<think>ä—€"]})
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(max_new_tokens=60))
    events = list(chat.stream("what?"))
    kinds = [type(event) for event in events if not isinstance(event, TokenWritten)]
    assert kinds == [ToolCalled, RegionsShown, Rejected, ToolCalled, Demanded, RegionsShown, Answered]
    assert events[-1].answer.trajectory.ids == chat.trajectory.ids
    looked = [event for event in events if isinstance(event, RegionsShown)]
    assert [region.index for event in looked for region in event.regions] == [1, 2]
    trajectory, decode = chat.trajectory, tiny_model.language_model.tokenizer.decode
    own = [(token, p) for token, p, made in zip(*columns(trajectory), strict=True) if made]
    tokens = [event for event in events if isinstance(event, TokenWritten)]
    assert [(event.id, event.logprob) for event in tokens] == own
    ends = [token for token, _ in own if token == tiny_model.language_model.end_of_turn]
    assert "".join(event.text for event in tokens) == "".join(
        decode([token for token in turn if token not in ends]) for turn in turns_of(trajectory)
    )


def columns(trajectory):
    return trajectory.ids, trajectory.logprobs, trajectory.produced


def turns_of(trajectory) -> list[list[int]]:
    """The ids that the model wrote in each turn."""
    ends = [*trajectory.starts[1:], len(trajectory.ids)]
    return [
        [token for token, own in zip(trajectory.ids[a:b], trajectory.produced[a:b], strict=True) if own]
        for a, b in zip(trajectory.starts, ends, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_texts_of_a_stream_are_the_turns_whatever_bytes_are_written(tiny_model, picture, seed):
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(20, temperature=3.0, seed=seed))
    events = [event for event in chat.stream("what?") if isinstance(event, TokenWritten)]
    language_model = tiny_model.language_model
    texts = []
    for turn in turns_of(chat.trajectory):
        ended = turn[-1] == language_model.end_of_turn
        texts.append(language_model.tokenizer.decode(turn[:-1] if ended else turn))
    assert "".join(event.text for event in events) == "".join(texts)


def test_streaming_changes_no_answer(chat_model, picture):
    answers = []
    for asked in (lambda chat: chat.ask("what?"), lambda chat: list(chat.stream("what?"))[-1].answer):
        answers.append(asked(vt.Chat(chat_model, [picture(0)], vt.Decoding(12, temperature=1.0, seed=3))))
    assert answers[0].trajectory == answers[1].trajectory


def test_a_second_question_while_a_stream_is_open_is_refused_and_disturbs_nothing(tiny_model, picture, tmp_path):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    alone = chat.fork().ask("what?")
    stream = chat.stream("what?")
    next(stream)
    call = {"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": ""}
    for refused in (
        lambda: chat.ask("why?"),
        lambda: list(chat.stream("why?")),
        lambda: chat.add(picture(1)),
        lambda: chat.call_tool(call),
        chat.fork,
        lambda: chat.save(tmp_path),
    ):
        with pytest.raises(UsageError, match="answering a question"):
            refused()
    (refusal,) = vt.ask_all([(chat, "why?")])
    assert isinstance(refusal, UsageError)
    assert list(stream)[-1].answer.trajectory.ids == alone.trajectory.ids == chat.trajectory.ids


def test_words_behind_words_that_nobody_answered_stand_apart(tiny_model, picture):
    chat = vt.Chat(tiny_model, [picture(0)])
    with_words = chat.session
    with_words.ask("what is this?")
    with_words.ask("and that?")
    assert "what is this?\nand that?" in tiny_model.language_model.tokenizer.decode(with_words.trajectory.ids)


def test_memory_grows_with_what_was_read_and_no_faster(tiny_model, picture):
    settings = tiny_model.language_model.model.config
    a_token = 2 * 4 * settings.num_hidden_layers * settings.num_key_value_heads * settings.head_dim
    chat = vt.Chat(tiny_model, [picture(0)], vt.Decoding(max_new_tokens=8))
    for _ in range(3):
        chat.ask("what?")
        length = len(chat.trajectory.ids)
        assert (length - 10) * a_token <= chat.cached_prefix.bytes <= (1.25 * length + 128) * a_token


def test_chats_that_are_over_leave_nothing(tiny_model, picture):
    def caches() -> int:
        return sum(type(one) is KVCache for one in gc.get_objects())

    gc.collect()
    before = caches()
    watched = []
    for number in range(6):
        chat = vt.Chat(tiny_model, [picture(number)], vt.Decoding(max_new_tokens=4))
        chat.ask("what?")
        chat.fork().ask("why?")
        stream = chat.stream("how?")
        next(stream)
        watched += [weakref.ref(chat), weakref.ref(chat.cached_prefix), weakref.ref(chat.session)]
        del chat, stream
    gc.collect()
    assert caches() == before
    assert not any(one() for one in watched)


def test_errors_that_are_kept_hold_no_cache(tiny_model, picture, monkeypatch):
    chats = [vt.Chat(tiny_model, [picture(n)], vt.Decoding(max_new_tokens=4)) for n in range(2)]
    made = []

    def making(rows, device):
        cache = KVCache(rows, device)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr("vilavt_toolkit.generation.loop.KVCache", making)
    monkeypatch.setattr(type(tiny_model.policies[1]), "decide", lambda self, state: [][0])
    answers = vt.ask_all([(chat, "what?") for chat in chats])
    gc.collect()
    assert made and not any(one() for one in made)
    assert all(isinstance(answer, IndexError) and answer.__traceback__ is not None for answer in answers)


def test_the_mode_of_a_model_is_given_back_by_the_last_of_its_streams(tiny_model, picture):
    chats = [vt.Chat(tiny_model, [picture(n)], SHORT) for n in range(2)]
    tiny_model.train()
    frozen = tiny_model.projector.eval()
    try:
        streams = [chat.stream("what?") for chat in chats]
        for stream in streams:
            next(stream)
        list(streams[0])
        assert not any(module.training for module in tiny_model.modules())
        streams[1].close()
        assert tiny_model.training and not frozen.training
    finally:
        tiny_model.eval()


def test_images_that_leave_no_room_for_a_question_can_be_taken_out(tiny_model, picture):
    chat = vt.Chat(tiny_model, [picture(0)], SHORT)
    alone = chat.fork().ask("what?")
    with pytest.raises(InputError):
        for seed in range(200):
            chat.add(picture(seed))
    assert chat.discard() > 1 and chat.discard() == 0
    chat.add(picture(0))
    assert chat.ask("what?").trajectory.ids == alone.trajectory.ids


def test_one_image_needs_no_list_and_several_come_from_any_iterable(tiny_model, picture, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(path)
    for one in (str(path), path, Image.fromarray(picture(0)), picture(0), vt.Chat(tiny_model, path).session.sources[0]):
        chat = vt.Chat(tiny_model, one, vt.Decoding(max_new_tokens=2))
        assert len(chat.session.sources) == 1
        chat.ask("what?", one)
        assert len(chat.session.sources) == 2
    assert len(vt.Chat(tiny_model, (picture(n) for n in range(2))).session.sources) == 2


def test_images_given_together_are_made_ready_once(tiny_model, picture, monkeypatch):
    made, prepare = [], tiny_model.prepare
    monkeypatch.setattr(tiny_model, "prepare", lambda region: made.append(region) or prepare(region))
    vt.Chat(tiny_model, [picture(n) for n in range(4)])
    assert len(made) == 4


def test_an_array_may_be_written_over_once_it_is_added(tiny_model, picture):
    buffer = picture(0).copy()
    chat = vt.Chat(tiny_model, buffer)
    buffer[:] = picture(1)
    chat.add(buffer)
    buffer[:] = 0
    for number, source in enumerate(chat.session.sources):
        assert (source.crop(source.extent).data == picture(number)).all()


def test_what_is_no_model_and_no_decoding_is_refused(tiny_model):
    with pytest.raises(UsageError, match=r"not 'runs/mine'. Load one with vt\.load"):
        vt.Chat("runs/mine")
    with pytest.raises(UsageError, match=r"takes a vt\.Decoding"):
        vt.Chat(tiny_model, [], {"temperature": 1})
