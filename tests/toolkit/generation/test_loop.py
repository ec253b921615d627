"""The loop: its cached log-probabilities are those of one full forward, and bad turns become feedback."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.testing.scripted import Scripted


def picture(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


QUESTIONS = ["what digit is on the red square?", "what?", "what shape is the blue object, and why do you think so?"]


def opened(model, images: list[int], question: str, tool: bool = True) -> Session:
    session = Session(model, [model.open_source(picture(seed)) for seed in images])
    session.ask(question, tool)
    return session


def call(model, *boxes: tuple[int, list[int]], inquiry: str = "red square") -> list[int]:
    turn = Turn("look", call=ToolCall(tuple(RegionCall(i, {"bbox_2d": b}) for i, b in boxes), inquiry))
    return model.language_model.tokenizer.encode(model.dialogue.write(turn))


def dialogues(model) -> tuple[list[Session], list[list[int]]]:
    """Ragged dialogues: no image to two, no zoom to nested zooms, a bad call; where a script ends, sampling goes on."""
    sessions = [
        opened(model, [0], QUESTIONS[0]),
        opened(model, [], QUESTIONS[1]),
        opened(model, [1, 2], QUESTIONS[2]),
        opened(model, [3], QUESTIONS[1]),
    ]
    scripts = [
        call(model, (0, [0, 0, 2, 2])) + call(model, (1, [1, 1, 4, 4]), (0, [0, 0, 4, 2]), inquiry="blue"),
        [],
        call(model, (1, [0, 2, 4, 4]), inquiry="what is it?"),
        call(model, (7, [0, 0, 2, 2])) + call(model, (0, [2, 0, 4, 4]), inquiry=""),
    ]
    return sessions, scripts


def full_logprobs(model, sessions: list[Session], left: bool, temperature: float) -> list[list[float]]:
    """Log-probabilities of the produced tokens by one forward over the whole padded batch."""
    batch = collate([s.trajectory for s in sessions], [s.views for s in sessions], model.language_model, left)
    with torch.no_grad():
        flat = plain_logprobs(model(batch), batch, temperature).tolist()
    rows = []
    for session in sessions:
        count = sum(session.trajectory.produced)
        rows.append(flat[:count])
        flat = flat[count:]
    return rows


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model whose positions have one axis, and one whose have three."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "ragged-batch"])
def test_cached_logprobs_equal_one_full_forward(chat_model, left, together):
    sessions, scripts = dialogues(chat_model)
    decoding = Decoding(max_new_tokens=40, temperature=0.9, seed=5)
    if together:
        Scripted(chat_model, decoding, scripts.__getitem__).run(sessions)
    else:
        for session, script in zip(sessions, scripts, strict=True):
            Scripted(chat_model, decoding, [script].__getitem__).run([session])
    assert sessions[0].calls == 2 and sessions[2].calls == 1 and sessions[3].calls == 1
    batches = [sessions] if together else [[session] for session in sessions]
    for rows in batches:
        for session, full in zip(rows, full_logprobs(chat_model, rows, left, 0.9), strict=True):
            trajectory = session.trajectory
            cached = [p for p, own in zip(trajectory.logprobs, trajectory.produced, strict=True) if own]
            assert len(cached) > 20
            assert max(abs(a - b) for a, b in zip(cached, full, strict=True)) < 1e-4


def test_a_batch_answers_as_its_dialogues_do_alone(chat_model):
    together, _ = dialogues(chat_model)
    Loop(chat_model, Decoding(max_new_tokens=24)).run(together)
    for number, alone in enumerate(dialogues(chat_model)[0]):
        Loop(chat_model, Decoding(max_new_tokens=24)).run([alone])
        assert alone.trajectory.ids == together[number].trajectory.ids


def test_nothing_is_prefilled_or_encoded_twice(tiny_model, monkeypatch):
    sessions, scripts = dialogues(tiny_model)
    fed, encoded = [], []
    forward, encode = type(tiny_model.language_model).forward, type(tiny_model).encode

    def counting_forward(self, embeddings, positions, mask, cache=None, last=None):
        fed.append(int(mask[:, -embeddings.shape[1] :].sum()))
        return forward(self, embeddings, positions, mask, cache, last)

    def counting_encode(self, views, groups, inquiries):
        encoded.append(len(views))
        return encode(self, views, groups, inquiries)

    monkeypatch.setattr(type(tiny_model.language_model), "forward", counting_forward)
    monkeypatch.setattr(type(tiny_model), "encode", counting_encode)
    Scripted(tiny_model, Decoding(max_new_tokens=40), scripts.__getitem__).run(sessions)
    assert sum(fed) <= sum(len(session.trajectory.ids) for session in sessions)
    assert sum(encoded) == sum(len(session.trajectory.regions) for session in sessions)


def test_sampling_is_reproducible_and_seeded_per_dialogue(tiny_model):
    def run(seed: int) -> list[list[int]]:
        sessions = [opened(tiny_model, [0], QUESTIONS[0]) for _ in range(3)]
        Loop(tiny_model, Decoding(12, temperature=1.0, seed=seed)).run(sessions)
        return [session.trajectory.ids for session in sessions]

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert first[0] != first[1]


def test_a_sampled_dialogue_does_not_depend_on_its_neighbours(tiny_model):
    def ids(neighbour: list[int]) -> list[int]:
        sessions = [opened(tiny_model, [0], QUESTIONS[0]) for _ in range(2)]
        Scripted(tiny_model, Decoding(20, temperature=1.0, seed=1), [neighbour, []].__getitem__).run(sessions)
        return sessions[1].trajectory.ids

    ends_early = tiny_model.language_model.tokenizer.encode("<think>a</think><answer>7</answer>")
    assert ids(ends_early) == ids(call(tiny_model, (0, [0, 0, 2, 2]), inquiry="a long inquiry")) == ids([])


def run_script(model, script: list[int], turns: int = 3) -> Session:
    session = opened(model, [0], QUESTIONS[0])
    Scripted(model, Decoding(max_new_tokens=60), [script].__getitem__).run([session])
    return session


@pytest.mark.parametrize(
    ("box", "index", "told"),
    [
        ([3, 0, 1, 2], 0, "inverted"),
        ([1, 1, 1, 2], 0, "bbox_2d"),
        ([0, 0, 9, 9], 0, "bbox_2d"),
        (["0", "0", "1", "1"], 0, "bbox_2d"),
        ([0, 0, 2, 2], 4, "4"),
        ([0, 0, 2, 2], -1, "-1"),
    ],
)
def test_a_bad_tool_call_becomes_feedback_and_the_dialogue_goes_on(tiny_model, box, index, told):
    session = run_script(tiny_model, call(tiny_model, (index, box)))
    trajectory = session.trajectory
    assert session.calls == 0 or len(trajectory.turns) > 1
    assert told in trajectory.feedback[0]
    assert told in tiny_model.language_model.tokenizer.decode(trajectory.ids)
    assert len(trajectory.turns) > 1


def test_broken_json_becomes_feedback(tiny_model):
    text = '<think>look</think><tool>{"region": [}</tool>'
    session = run_script(tiny_model, tiny_model.language_model.tokenizer.encode(text))
    assert "JSON" in session.trajectory.feedback[0]


def test_an_answer_stops_the_loop_at_its_tag_even_when_the_tag_is_split(tiny_model):
    tokenizer = tiny_model.language_model.tokenizer
    pieces = ["<think>seen</think>", "<answer>7", "</", "ans", "wer>"]
    script = [token for piece in pieces for token in tokenizer.encode(piece)]
    assert len(script) > len(tokenizer.encode("".join(pieces)))
    session = run_script(tiny_model, script)
    trajectory = session.trajectory
    assert trajectory.answer == "7" and trajectory.why == "answered"
    assert trajectory.ids[-1] == tiny_model.language_model.end_of_turn
    assert not trajectory.produced[-1], "the end-of-turn token was appended, not sampled"


def test_the_answer_is_demanded_once_when_the_turns_are_used_up(tiny_model):
    zoom = call(tiny_model, (0, [0, 0, 2, 2]))
    session = run_script(tiny_model, zoom * 4)
    trajectory = session.trajectory
    assert len(trajectory.turns) == 4 and session.calls == 3
    assert "3 turns" in trajectory.why
    assert tiny_model.language_model.tokenizer.decode(trajectory.ids).count("Answer now.") == 1


def test_a_full_context_rolls_the_turn_back_whole(tiny_model):
    session = opened(tiny_model, [0], QUESTIONS[0] * 30)
    before = len(session.trajectory.ids)
    assert session.tokens_left < 150
    zoom = call(tiny_model, *[(0, [0, 0, 2, 2])] * 6)
    Scripted(tiny_model, Decoding(max_new_tokens=80), [zoom].__getitem__).run([session])
    trajectory = session.trajectory
    assert trajectory.why == "the context is full"
    assert len(trajectory.regions) == len(session.views) == 1 and len(trajectory.groups) == 1
    assert before < len(trajectory.ids) <= tiny_model.language_model.context_length
