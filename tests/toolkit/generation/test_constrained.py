"""Decoding under a grammar: every turn can be carried out, whatever the model would rather write."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

import vilavt_toolkit as vt
from vilavt_toolkit.contracts import Box, Dialogue, RegionCall, Source, ToolCall, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation import constrained as grammar
from vilavt_toolkit.generation.constrained import turn_constraint
from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.sampling import Decoding, RowSampling, StopCriteria, sample_tokens

LONG = "model.language_model.config.max_position_embeddings=60000"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def spots() -> np.ndarray:
    """A cloud with much empty space: most boxes of it hold nothing."""
    places = np.random.default_rng(0).choice([0.0, 0.1, 0.5, 1.0], (40, 3), p=[0.4, 0.3, 0.2, 0.1])
    return np.concatenate([places * [3, 2, 1], np.full((40, 3), 0.5)], axis=1).astype(np.float32)


IMAGES = (noise(64, 48, 3), noise(7, 1000, 3), noise(1500, 9, 3), noise(1, 3, 3))
FINE = "model.dialogue.box_units=1000"
KINDS = {
    "images in a thousand steps": ("tiny", (FINE,), IMAGES),
    "images in four steps": ("tiny", ("model.dialogue.blank_inquiries=false",), IMAGES),
    "images cut as the paper's": ("tiny", (FINE, "model.source.rounding=truncate"), IMAGES),
    "pixels of what was shown": ("mrope", ("model.dialogue={name: vilavt, system: ''}",), (IMAGES[0], IMAGES[3])),
    "videos": ("tiny", (FINE, "model.source.name=video", "model.source.frames=3"), (noise(13, 9, 400, 3),)),
    "clouds": ("clouds", (), (spots(),)),
}
"""Recipe, changes of it, originals."""


@pytest.fixture(scope="module")
def opened(_tiny_folder, clouds):
    """Opens a session of a kind; models are built once."""
    (_tiny_folder / "clouds.yaml").write_text(clouds)

    @cache
    def model(recipe: str, *changes: str):
        return vt.build(_tiny_folder / f"{recipe}.yaml", (LONG, *changes))

    def make(kind: str, *more: str) -> Session:
        recipe, changes, originals = KINDS[kind]
        built = model(recipe, *changes, *more)
        session = Session(built, [built.open_source(original) for original in originals])
        session.ask("what?")
        return session

    return make


class Babbler:
    """Draws turns from random logits in which structure and figures are likeliest, so that calls are many, and end."""

    def __init__(self, model, seed: int) -> None:
        self.model, self.random = model, torch.Generator().manual_seed(seed)
        size, tokenizer = model.language_model.vocab_size, model.language_model.tokenizer
        texts = [tokenizer.decode([token]) for token in range(size)]
        self.likely = torch.tensor([7.0 * any(c in '<>"}]/,' or c.isdigit() for c in text) for text in texts])
        self.is_complete = StopCriteria(
            tokenizer, model.dialogue.stop_strings, model.language_model.end_of_turn
        ).is_complete

    def turn(self, session: Session, answer_only: bool = False, most: int = 4000) -> list[int]:
        constraint, ids = turn_constraint(self.model, session, answer_only), list[int]()
        while len(ids) < most and not self.is_complete(ids):
            logits = 3 * torch.randn(1, len(self.likely), generator=self.random) + self.likely
            (token,), _ = sample_tokens(
                logits, [RowSampling(self.random, ids, constraint)], Decoding(temperature=1.0, top_p=0.95)
            )
            constraint.accept_token(token)
            ids.append(token)
        return ids


def test_a_thought_that_the_chat_template_opens_is_not_opened_again(opened, monkeypatch):
    for kind in ("images in four steps", "pixels of what was shown"):
        session = opened(kind)
        frames = session.model.language_model.turn_template
        monkeypatch.setattr(
            session.model.language_model, "turn_template", dataclasses.replace(frames, opened="<think>")
        )
        written = session.model.dialogue.write(Turn("why", answer="7"))
        assert allowed(session, written.removeprefix("<think>")) and not allowed(session, written)
        decode, babbler = session.model.language_model.tokenizer.decode, Babbler(session.model, 1)
        for _ in range(3):
            assert not session.model.dialogue.parse(f"<think>{decode(babbler.turn(session))}").problem
        monkeypatch.undo()


def allowed(session: Session, text: str) -> bool:
    """Whether a turn can be written so, token by token, and is complete then."""
    language_model = session.model.language_model
    constraint = turn_constraint(session.model, session, answer_only=False)
    for token in language_model.tokenizer.encode(text):
        if not constraint.allowed_tokens(language_model.vocab_size)[token]:
            return False
        constraint.accept_token(token)
    return constraint.allowed_tokens(language_model.vocab_size).nonzero().flatten().tolist() == [
        language_model.end_of_turn
    ]


# --- What can be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_reads_without_a_problem_and_every_call_is_carried_out(opened, kind):
    carried = several = 0
    for seed in range(12):
        session = opened(kind)
        babbler = Babbler(session.model, seed)
        for _ in range(4):  # zooms into zooms
            ids = babbler.turn(session)
            turn = session.add_sampled_turn(ids, [0.0] * len(ids))
            assert turn.problem == ""
            if turn.call is None:
                assert turn.answer
                continue
            session.carry_out(turn.call)
            carried += 1
            several += len(turn.call.regions) > 1
    assert carried > 5 and several > 1, "random logits name regions too"


def test_a_call_names_no_more_regions_than_the_dialogue_reads(opened):
    counts = set()
    for seed in range(30):
        session = opened("images in four steps", "model.dialogue.max_regions=2")
        ids = Babbler(session.model, seed).turn(session)
        turn = session.add_sampled_turn(ids, [0.0] * len(ids))
        assert turn.problem == ""
        counts.add(len(turn.call.regions) if turn.call else 0)
    assert counts == {0, 1, 2}


@pytest.mark.parametrize("kind", ["images in four steps", "pixels of what was shown"])
@pytest.mark.parametrize("how", ["demanded", "without the tool", "without an image"])
def test_where_a_call_would_not_be_carried_out_only_an_answer_can_be_written(opened, kind, how):
    for seed in range(6):
        session = opened(kind)
        if how == "without an image":
            session = Session(session.model, [])
        if how != "demanded":
            session.ask("what?", tool=how != "without the tool")
        ids = Babbler(session.model, seed).turn(session, answer_only=how == "demanded")
        turn = session.add_sampled_turn(ids, [0.0] * len(ids))
        assert turn.answer and not turn.problem and turn.call is None


def test_a_turn_that_is_cut_short_is_the_beginning_of_one(opened):
    session = opened("images in a thousand steps")
    tokenizer = session.model.language_model.tokenizer
    for seed in range(8):
        whole = Babbler(session.model, seed).turn(session)
        cut = Babbler(session.model, seed).turn(session, most=len(whole) - 1)
        assert cut == whole[:-1]
        assert "form" in session.model.dialogue.parse(tokenizer.decode(cut)).problem, "told as any unfinished turn is"


words = st.text(st.characters(codec="utf-8"), max_size=30)


@given(
    words,
    words,
    st.one_of(words, st.text(" \n\x1c\x85\u2003", max_size=3)),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.data(),
)
def test_what_the_dialogue_writes_itself_can_be_written(opened, thought, query, answer, indices, data):
    session = opened(data.draw(st.sampled_from([*KINDS])))
    regions = [written(session, index % len(session.trajectory.regions), data) for index in indices]
    for turn in (Turn(thought, call=ToolCall(tuple(regions), query)), Turn(thought, answer=answer)):
        text = session.model.dialogue.write(turn)
        good = not session.model.dialogue.parse(text).problem and can_be_carried_out(session, turn)
        assert allowed(session, text) == good, text


def written(session: Session, index: int, data: st.DataObject) -> RegionCall:
    """A box somewhere in a region, as its source writes it."""
    source, within, units = parent(session, index)
    lead, axes = within[: len(within) % 2], len(within) // 2
    lows, highs = within[len(lead) :][:axes], within[len(lead) :][axes:]
    shares = [sorted(data.draw(st.tuples(st.floats(0, 0.99), st.floats(0.01, 1)))) for _ in range(axes)]
    assume(all(low < high for low, high in shares))
    box = [
        low + (high - low) * share[end] for end in (0, 1) for low, high, share in zip(lows, highs, shares, strict=True)
    ]
    return RegionCall(index, source.write_box((*lead, *box), within, units))


def parent(session: Session, index: int) -> tuple[Source, Box, tuple[int, ...]]:
    """A first view, as one that boxes are written in: its source, its box, its units along each axis."""
    region = session.trajectory.regions[index]
    source = session.sources[region.source]
    within = source.overviews()[region.overview]
    units = session.model.dialogue.box_units(session.model.vision.backbone.extent(session.views[index]))
    return source, within, (units,) * (len(within) // 2) if isinstance(units, int) else units


def can_be_carried_out(session: Session, turn: Turn) -> bool:
    """Whether a turn can be, which an answer always can."""
    try:
        if turn.call is not None:
            session.prepare_call(turn.call)
    except CallError:
        return False
    return True


@given(st.integers(0, 3), st.data())
def test_a_box_can_be_written_exactly_where_it_can_be_carried_out(opened, index, data):
    """Inverted, empty, too large, less than a pixel, too long for its breadth, without points: none of these."""
    session = opened(data.draw(st.sampled_from([*KINDS])))
    index = min(index, len(session.trajectory.regions))  # one behind the last is not there
    source, _, units = parent(session, min(index, len(session.trajectory.regions) - 1))
    starts = [data.draw(st.integers(0, most)) for most in units]
    sides = [st.one_of(st.integers(-1, 9), st.integers(1, most), st.just(most - start))
             for start, most in zip(starts, units, strict=True)]  # fmt: skip
    box = [*starts, *(start + data.draw(side) for start, side in zip(starts, sides, strict=True))]
    turn = Turn("look", call=ToolCall((RegionCall(index, {source.box_key: box}),), "what?"))
    can = can_be_carried_out(session, turn)
    event(f"can be carried out: {can}")
    assert allowed(session, session.model.dialogue.write(turn)) == can, turn


@pytest.mark.parametrize(
    ("time", "can"), [(0, True), (2.25, True), (12, True), (13.0, True), (13.01, False), (-1, False), (99, False)]
)
def test_a_moment_lies_within_the_video(opened, time, can):
    session = opened("videos")
    turn = Turn("look", call=ToolCall((RegionCall(1, {"bbox_2d": [0, 0, 1000, 1000], "time": time}),), "then?"))
    assert allowed(session, session.model.dialogue.write(turn)) == can == can_be_carried_out(session, turn)


# --- How it is used ------------------------------------------------------------------------------------------------


def test_marks_and_placeholders_can_never_be_written(opened):
    session = opened("images in four steps")
    language_model = session.model.language_model
    constraint = turn_constraint(session.model, session, answer_only=False)
    for token in language_model.tokenizer.encode("<think>"):
        constraint.accept_token(token)
    mask = constraint.allowed_tokens(language_model.vocab_size + 8)
    marks = [token for text in ("<|user|>", "<|pad|>", "<|end|>") for token in language_model.tokenizer.encode(text)]
    assert mask.sum() > 100 and not mask[[*marks, language_model.placeholder]].any()
    assert not mask[language_model.vocab_size :].any(), "logits beyond the vocabulary are padding"


def test_a_token_that_the_mask_rules_out_is_refused(opened):
    session = opened("images in four steps")
    encode = session.model.language_model.tokenizer.encode
    constraint = turn_constraint(session.model, session, answer_only=False)
    with pytest.raises(ValueError, match="does not go on"):
        constraint.accept_token(encode("no")[0])
    constraint = turn_constraint(session.model, session, answer_only=True)
    for token in encode("<think>a</think><answer>7</answer>"):
        constraint.accept_token(token)
    constraint.accept_token(session.model.language_model.end_of_turn)
    with pytest.raises(ValueError, match="complete"):
        constraint.accept_token(encode("no")[0])


def test_without_the_library_the_extra_is_named(opened, monkeypatch):
    session = opened("images in four steps")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(grammar, "_compiled", weakref.WeakKeyDictionary())
    with pytest.raises(UsageError, match=r"vilavt-toolkit\[grammar\]"):
        turn_constraint(session.model, session, answer_only=False)


def test_who_cannot_say_what_a_turn_is_says_so(opened, monkeypatch):
    session = opened("images in four steps")
    with monkeypatch.context() as patch:
        patch.setattr(type(session.sources[0]), "box_schema", Source.box_schema)
        with pytest.raises(UsageError, match="box_schema"):
            turn_constraint(session.model, session, answer_only=False)
    with monkeypatch.context() as patch:
        patch.setattr(type(session.model.dialogue), "grammar", lambda *_: "start: nothing")
        with pytest.raises(UsageError, match=r"cannot be followed.*nothing"):
            turn_constraint(session.model, session, answer_only=False)
    monkeypatch.setattr(type(session.model.dialogue), "grammar", Dialogue.grammar)
    with pytest.raises(UsageError, match="Native has no grammar"):
        turn_constraint(session.model, session, answer_only=False)


def test_in_the_loop_every_turn_that_is_not_cut_short_is_carried_out(opened):
    sessions = [opened("images in a thousand steps") for _ in range(3)]
    limit = 400
    Loop(sessions[0].model, Decoding(limit, temperature=1.0, seed=3, grammar=True)).run(sessions)
    whole = 0
    for session in sessions:
        end = session.model.language_model.end_of_turn
        turns = [[]]
        for token, own in zip(session.trajectory.ids, session.trajectory.produced, strict=True):
            turns[-1] += [token] * own
            turns += [[]] * (token == end and bool(turns[-1]))
        lengths = [len(turn) for turn in turns if turn]
        assert len(lengths) == len(session.trajectory.turns)
        for length, turn, told in zip(lengths, session.trajectory.turns, session.trajectory.feedback, strict=True):
            whole += length < limit
            assert length == limit or (not turn.problem and not told)
    assert whole > 2


def test_a_tokenizer_is_compiled_once_and_forgotten_with_its_model(tiny_recipe):
    model = vt.build(tiny_recipe)
    session = Session(model, [model.open_source(noise(16, 16, 3))])
    session.ask("what?")
    turn_constraint(model, session, answer_only=False)
    tokenizer = weakref.ref(model.language_model.tokenizer)
    compiled = grammar._compiled[tokenizer()]
    turn_constraint(model, session, answer_only=True)
    assert grammar._compiled[tokenizer()] is compiled
    del model, session
    gc.collect()
    assert tokenizer() is None
