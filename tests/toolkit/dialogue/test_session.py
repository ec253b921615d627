"""Sessions: what the model sees and what it is trained on, token by token; everything added whole or not at all."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from vilavt_toolkit.contracts import Region, RegionCall, Sample, ToolCall, TraceTurn, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.dialogue.writer import ContextFull
from vilavt_toolkit.errors import InputError


def picture(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def opened(model, images: int = 1, question: str = "what digit is on the red square?") -> Session:
    session = Session(model, [model.open_source(picture(seed)) for seed in range(images)])
    session.ask(question)
    return session


def call(*boxes: tuple[int, list], inquiry: str = "red square") -> ToolCall:
    return ToolCall(tuple(RegionCall(index, {"bbox_2d": box}) for index, box in boxes), inquiry)


TRACE = (
    TraceTurn("red square 0 0, blue circle 1 1", "red square", ((0, (0.0, 0.0, 32.0, 32.0)),)),
    TraceTurn("closer", "its digit", ((1, (16.0, 16.0, 32.0, 32.0)), (0, (0.0, 0.0, 64.0, 32.0)))),
    TraceTurn("read 7", answer="7"),
)


def sample(trace=TRACE, images: int = 1, question: str = "what digit is on the red square?", tool=True) -> Sample:
    return Sample("s", question, "7", tuple(picture(seed) for seed in range(images)), trace, tool)


def test_the_loss_covers_exactly_the_models_own_words_and_its_end_of_turn(tiny_model):
    trajectory = build_trace_session(tiny_model, sample()).trajectory
    language = tiny_model.language_model
    runs, run = [], []
    for token, own in zip(trajectory.ids, trajectory.produced, strict=True):
        if own:
            run.append(token)
        elif run:
            runs, run = [*runs, run], []
    runs = [*runs, run]
    assert len(runs) == len(TRACE)
    for written, turn in zip(runs, trajectory.turns, strict=True):
        assert written[-1] == language.end_of_turn
        assert language.tokenizer.decode(written[:-1]) == tiny_model.dialogue.write(turn)


@pytest.fixture
def thinking_model(tiny_model, monkeypatch):
    """The tiny model behind a chat template that opens the thought for it."""
    frames = tiny_model.language_model.turn_template
    opening = dataclasses.replace(frames, reply=f"{frames.reply}<think>\n", opened="<think>")
    monkeypatch.setattr(tiny_model.language_model, "turn_template", opening)
    return tiny_model


def test_a_thought_that_the_prompt_opens_is_in_no_target_and_read_as_written(thinking_model):
    session = build_trace_session(thinking_model, sample())
    decode, end = thinking_model.language_model.tokenizer.decode, thinking_model.language_model.end_of_turn
    text = decode(session.trajectory.ids)
    assert text.count("<think>\n") == len(TRACE) and text.count("<think>") == len(TRACE)
    produced = zip(session.trajectory.ids, session.trajectory.produced, strict=True)
    said = decode([token for token, own in produced if own]).split(decode([end]))[:-1]
    assert [f"<think>{turn}" for turn in said] == [thinking_model.dialogue.write(t) for t in session.trajectory.turns]
    sampled = opened(thinking_model)
    turn = sampled.add_sampled_turn(thinking_model.language_model.tokenizer.encode(said[-1]), [0.0] * 99)
    assert turn == session.trajectory.turns[-1] and not turn.problem
    assert sampled.read_turn_text(-1) == thinking_model.dialogue.write(turn)


def test_every_region_stands_where_the_placeholders_are_and_nowhere_else(tiny_model):
    session = build_trace_session(tiny_model, sample(images=2))
    trajectory = session.trajectory
    places = [place for region in trajectory.regions for place in range(region.start, region.start + region.count)]
    placeholder = tiny_model.language_model.placeholder
    assert places == [place for place, token in enumerate(trajectory.ids) if token == placeholder]
    assert not any(trajectory.produced[place] for place in places)
    assert len(session.views) == len(trajectory.regions) == 5
    for view, region in zip(session.views, trajectory.regions, strict=True):
        assert region.count == tiny_model.feature_count(view.size) and region.size == view.size


def test_regions_of_one_call_share_its_inquiry_and_overviews_have_none(tiny_model):
    trajectory = build_trace_session(tiny_model, sample()).trajectory
    assert [region.group for region in trajectory.regions] == [0, 1, 2, 2]
    assert [group.text for group in trajectory.groups] == ["", "red square", "its digit"]
    assert trajectory.groups[0].ids == ()
    assert list(trajectory.groups[1].ids) == tiny_model.tokenize_inquiry("red square")


def test_a_zoom_into_a_zoom_lands_in_the_originals_pixels(tiny_model):
    session = opened(tiny_model)
    session.add_given_turn(Turn("a", call=call((0, [2, 2, 4, 4]))))
    session.carry_out(call((0, [2, 2, 4, 4])))
    session.carry_out(call((1, [0, 2, 2, 4])))
    assert [region.box for region in session.trajectory.regions] == [None, (32, 32, 64, 64), (32, 48, 48, 64)]
    direct = session.sources[0].crop((32, 48, 48, 64)).data
    assert np.array_equal(direct, picture()[48:64, 32:48])
    assert (
        session.views[2].data == tiny_model.vision.backbone.prepare(session.sources[0].crop((32, 48, 48, 64))).data
    ).all()


def test_a_zoom_knows_the_scale_of_the_view_it_was_named_in_and_its_share_of_the_image(tiny_model):
    session = opened(tiny_model)
    session.carry_out(call((0, [2, 2, 4, 4])))
    session.carry_out(call((1, [0, 2, 2, 4])))
    regions, encoder = session.trajectory.regions, tiny_model.vision.backbone
    first, second = (encoder.extent(view)[0] for view in session.views[:2])
    assert [region.shown.parent_scale for region in regions] == [0.0, first / 64, second / 32]
    assert Region(session.sources[0], regions[2].box).crop().shown.share == (0.25, 0.25)


def test_a_zoom_knows_which_of_several_images_it_is_in(tiny_model):
    session = opened(tiny_model, images=2)
    session.carry_out(call((1, [0, 0, 2, 2]), (0, [0, 0, 2, 2])))
    assert [region.source for region in session.trajectory.regions] == [0, 1, 1, 0]


def test_a_dialogue_in_training_has_the_ids_of_the_same_dialogue_in_the_chat(tiny_model):
    trained = build_trace_session(tiny_model, sample()).trajectory
    chat = opened(tiny_model)
    encode, end = tiny_model.language_model.tokenizer.encode, tiny_model.language_model.end_of_turn
    for turn in trained.turns:
        ids = [*encode(tiny_model.dialogue.write(turn)), end]
        assert chat.add_sampled_turn(ids, [-1.0] * len(ids)) == turn
        if turn.call is not None:
            chat.carry_out(turn.call)
    assert chat.trajectory.ids == trained.ids and chat.trajectory.produced == trained.produced
    assert chat.trajectory.regions == trained.regions and chat.trajectory.groups == trained.groups


def test_further_questions_of_a_trace_are_those_of_a_chat(tiny_model):
    """Each is asked after the answer before it, in a user turn of its own, which is not learned."""
    second = (TraceTurn("so", "blue circle", ((0, (32.0, 32.0, 64.0, 64.0)),), question="and the blue circle?"),)
    trained = build_trace_session(tiny_model, sample((*TRACE, *second, TraceTurn("read 4", answer="4"))))
    chat = opened(tiny_model)
    for number, turn in enumerate(trained.trajectory.turns):
        if number == 3:
            chat.ask("and the blue circle?")
        chat.add_given_turn(turn)
        if turn.call is not None:
            chat.carry_out(turn.call)
    assert trained.trajectory.ids == chat.trajectory.ids and trained.trajectory.produced == chat.trajectory.produced
    assert [asked.turn for asked in trained.trajectory.questions] == [0, 3]
    assert trained.trajectory.answer == "4"


def test_an_end_of_turn_that_was_not_sampled_is_appended_and_not_trained_on(tiny_model):
    session = opened(tiny_model)
    ids = tiny_model.language_model.tokenizer.encode("<think>a</think><answer>7</answer>")
    session.add_sampled_turn(ids, [-1.0] * len(ids))
    assert session.trajectory.ids[-1] == tiny_model.language_model.end_of_turn
    assert session.trajectory.produced[-2:] == [True, False]
    assert session.trajectory.logprobs[-2:] == [-1.0, 0.0]


def test_a_question_without_the_tool_asks_for_the_answer_at_once(tiny_model):
    decode = tiny_model.language_model.tokenizer.decode
    free, forced = (build_trace_session(tiny_model, sample(TRACE[2:], tool=tool)).trajectory for tool in (True, False))
    assert "Answer now." in decode(forced.ids) and "Answer now." not in decode(free.ids)


def state(session: Session) -> tuple:
    return copy.deepcopy(session.trajectory), list(map(id, session.views)), session.calls


BAD_CALLS = {
    "an index too high": (call((0, [0, 0, 2, 2]), (1, [0, 0, 2, 2])), '"index" 1 of region 1'),
    "a negative index": (call((-1, [0, 0, 2, 2])), "0 to 0"),
    "an endless index": (call((10**4000, [0, 0, 2, 2])), "figures"),
    "an inverted box": (call((0, [2, 0, 1, 2])), "inverted"),
    "an empty box": (call((0, [1, 1, 1, 2])), "Region 0"),
    "a box outside": (call((0, [0, 0, 5, 5])), "Region 0"),
    "a second box outside": (call((0, [0, 0, 2, 2]), (0, [9, 9, 11, 11])), "Region 1"),
    "three numbers": (call((0, [0, 0, 2])), "Region 0"),
    "numbers in quotes": (call((0, ["0", "0", "2", "2"])), "Region 0"),
    "truths": (call((0, [False, False, True, True])), "Region 0"),
    "not a number": (call((0, [float("nan"), 0, 2, 2])), "Region 0"),
    "infinite": (call((0, [0, 0, float("inf"), 2])), "Region 0"),
    "huge": (call((0, [0, 0, 10**400, 2])), "Region 0"),
    "another key": (ToolCall((RegionCall(0, {"box": [0, 0, 1, 1]}),), ""), "bbox_2d"),
    "no box": (ToolCall((RegionCall(0, {}),), ""), "bbox_2d"),
}


@pytest.mark.parametrize(("bad", "told"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_bad_call_says_why_in_a_sentence_and_adds_nothing(tiny_model, bad, told):
    session = opened(tiny_model)
    before = state(session)
    with pytest.raises(CallError) as error:
        session.carry_out(bad)
    assert told in str(error.value) and len(str(error.value)) < 300
    assert state(session) == before


def test_what_does_not_fit_the_context_adds_nothing(tiny_model):
    session = opened(tiny_model)
    session.add_given_turn(Turn("look", call=call((0, [0, 0, 2, 2]))))
    before, room = state(session), session.tokens_left
    for add in (
        lambda: session.carry_out(call(*[(0, [0, 0, 2, 2])] * 40)),
        lambda: session.carry_out(call((0, [0, 0, 2, 2])), reserve=room),
        lambda: session.add_feedback("no", reserve=room),
        lambda: session.add_feedback("what? " * 500),
        lambda: session.add_given_turn(Turn("long " * 500, answer="7")),
    ):
        with pytest.raises(ContextFull, match="remain"):
            add()
        assert state(session) == before


def test_an_over_long_question_is_one_sentence_that_says_what_to_do(tiny_model):
    session = Session(tiny_model, [tiny_model.open_source(picture())])
    with pytest.raises(InputError, match=r"question does not fit: \d+ tokens .* Shorten it") as error:
        session.ask("why? " * 2000)
    assert "\n" not in str(error.value)
    assert session.trajectory.ids == [] and session.views == []


def test_a_question_that_is_no_text_is_one_sentence(tiny_model):
    with pytest.raises(InputError, match="no valid text"):
        Session(tiny_model, []).ask("what \udcff?")


BAD_TRACES = {
    "nothing": ((), "no trace"),
    "neither boxes nor an answer": ((TraceTurn("a"),), "turn 0"),
    "a question before an answer": ((TRACE[0], TraceTurn("a", answer="7", question="b?")), "turn 1 of the trace: its"),
    "boxes and an answer": ((TraceTurn("a", "b", ((0, (0, 0, 1, 1)),), "7"),), "turn 0"),
    "an empty answer": ((TRACE[0], TraceTurn("a", answer=" ")), "turn 1 of the trace: The answer is empty"),
    "a tag in a thought": ((TraceTurn("a</think>b", answer="7"),), "turn 0"),
    "too many regions": ((TraceTurn("a", "b", ((0, (0, 0, 32, 32)),) * 17),), "1 to 16"),
    "a box outside the image": ((TraceTurn("a", "b", ((0, (900, 900, 999, 999)),)),), "turn 0"),
    "a region that is not there": ((TraceTurn("a", "b", ((3, (0, 0, 32, 32)),)),), "region 3 does not exist"),
    "a region counted from the end": ((TraceTurn("a", "b", ((-1, (0, 0, 32, 32)),)),), "region -1 does not exist"),
    "a flat box": (
        (TraceTurn("a", "b", ((0, 0, 32, 32),)),),
        "turn 0 of the trace: [0, 0, 32, 32] in its boxes is not",
    ),
    "a pair without the outer brackets": ((TraceTurn("a", "b", (0, (0, 0, 32, 32))),), "Write boxes=((0, (x1, y1"),
    "an index that is no number": ((TraceTurn("a", "b", (("0", (0, 0, 32, 32)),)),), "Write boxes=((0, (x1, y1"),
    "a coordinate that is NaN": ((TraceTurn("a", "b", ((0, (0, 0, float("nan"), 32)),)),), "box of finite numbers"),
    "a box of three numbers": ((TraceTurn("a", "b", ((0, (0, 0, 32)),)),), "must have 4 numbers"),
    "too long": ((TraceTurn("word " * 500, answer="7"),), "tokens are needed"),
}


@pytest.mark.parametrize(("trace", "told"), BAD_TRACES.values(), ids=BAD_TRACES.keys())
def test_a_trace_that_cannot_be_learned_names_the_sample_and_the_turn(tiny_model, trace, told):
    with pytest.raises(InputError, match=r"^sample s: ") as error:
        build_trace_session(tiny_model, sample(trace))
    assert told in str(error.value)


def test_an_answer_that_is_demanded_and_not_is_the_same_dialogue_again(tiny_model):
    session = opened(tiny_model)
    for _ in range(2):
        before = session.trajectory.to_json()
        start = session.add_demand()
        assert tiny_model.dialogue.demand() in tiny_model.language_model.tokenizer.decode(
            session.trajectory.ids[start:]
        )
        assert session.trajectory.ids[:start] == before["ids"][:start] and session.fixed_length == start
        assert session.remove_demand() == start
        assert session.trajectory.to_json() == before
        session.add_given_turn(Turn("look", call=call((0, [0, 0, 2, 2]))))
        session.carry_out(session.trajectory.turns[-1].call)


def test_what_came_behind_a_mark_is_taken_back_whole(tiny_model):
    session = opened(tiny_model)
    session.add_given_turn(Turn("look", call=call((0, [0, 0, 2, 2]))))
    session.carry_out(session.trajectory.turns[-1].call)
    before, mark, views, calls = session.trajectory.to_json(), session.save_mark(), list(session.views), session.calls
    session.add_demand()
    session.add_sources(tiny_model.open_source(picture(1)))
    session.ask("and what is there?", tool=False)
    session.add_given_turn(Turn("seen", answer="7"))
    session.add_feedback("say more")
    session.trajectory.why = "stopped"
    session.roll_back(mark)
    assert session.trajectory.to_json() == before
    assert (session.views, session.calls, session.can_call_tool, session.sources_shown) == (views, calls, True, 1)
