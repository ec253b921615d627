"""Whatever is done with chats and their forks, and in what order: what they read is what one reading would give."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vilavt_toolkit as vt
from vilavt_toolkit.errors import InputError

QUESTIONS = st.sampled_from(["what?", "why is it red?", "x", "where? " * 80])
ACTS = st.one_of(
    st.tuples(st.just("ask"), QUESTIONS),
    st.tuples(st.just("ask with"), st.integers(1, 3)),
    st.tuples(st.just("add"), st.integers(1, 3)),
    st.tuples(st.just("fork"), st.none()),
    st.tuples(st.just("drop"), st.none()),
    st.tuples(st.just("leave"), st.integers(1, 12)),
    st.tuples(st.just("call"), st.integers(0, 3)),
    st.tuples(st.just("all"), QUESTIONS),
    st.tuples(st.just("interleave"), QUESTIONS),
)


def act(chats: list[vt.Chat], which: int, what: str, value, picture) -> None:
    chat = chats[which % len(chats)]
    if what == "ask":
        chat.ask(value)
    elif what == "ask with":
        chat.ask("what?", images=[picture(value, 16 * value)])
    elif what == "add":
        chat.add(picture(value))
    elif what == "fork":
        chats.append(chat.fork())
    elif what == "drop" and len(chats) > 1:
        chats.remove(chat)
    elif what == "leave":
        stream = chat.stream("how?")
        list(islice(stream, value))
        stream.close()
    elif what == "call":
        chat.call_tool({"region": [{"index": value, "bbox_2d": [0, 0, 2, 3]}], "query": "red"})
    elif what == "all":
        vt.ask_all([(chat, value) for chat in chats], slots=2)
    elif what == "interleave":
        stream = chat.stream("how?")
        list(islice(stream, 3))
        others = [other for other in chats if other is not chat]
        vt.ask_all([(other, value) for other in others])
        for _ in stream:
            pass


@pytest.fixture(scope="module")
def probing_model(_tiny_folder):
    """A model whose answer is probed at every look, and sometimes accepted; which sometimes looks no further."""
    policies = "[{name: model_decides}, {name: confidence, threshold: 0.02}, {name: max_turns, turns: 2}]"
    return vt.build(_tiny_folder / "mrope.yaml", [f"model.stopping={policies}"])


@pytest.fixture(params=["tiny_model", "mrope_model", "probing_model"])
def model(request):
    """A model whose positions have one axis, one whose have three, and one whose answers are taken back."""
    return request.getfixturevalue(request.param)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.tuples(st.integers(0, 5), ACTS), min_size=4, max_size=14))
def test_log_probabilities_are_those_of_one_reading(model, picture, read_as_at_once, acts):
    chats = [vt.Chat(model, [picture(0)], vt.Decoding(max_new_tokens=3))]
    for which, (what, value) in acts:
        with suppress(InputError):  # the context is full
            act(chats, which, what, value, picture)
    for chat in (chat for chat in chats if chat.trajectory.ids):
        read_as_at_once(chat, 0)
        ids = chat.trajectory.ids
        assert ids.count(model.language_model.placeholder) == sum(r.count for r in chat.trajectory.regions)
        assert len(chat.session.views) == len(chat.trajectory.regions)
        # What was read but never written of is right if what is written next of it is.
        with suppress(InputError):
            chat.ask("x")
        read_as_at_once(chat, 0)
