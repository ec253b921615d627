"""Answers: short to read, whole as data, a picture in a notebook, and malformed turns are in the trace."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.cli import commands
from vilavt_toolkit.contracts import Turn
from vilavt_toolkit.report.trace import _text_entries

QUESTION = "what digit is on the red square?"
WRITTEN = "<think>a, then <answer></answer>"


@pytest.fixture
def answer(tiny_model, says, picture, look):
    """An answer after a zoom, a turn that is none, and a box that is none."""
    says(tiny_model, {QUESTION: [look((0, [0, 0, 2, 2])), WRITTEN, look((0, [3, 0, 1, 1])), Turn("seen", answer="7")]})
    return vt.Chat(tiny_model, [picture(0)]).ask(QUESTION)


def test_a_malformed_turn_is_in_the_trace_as_it_was_written_with_what_is_wrong(answer):
    good, malformed, refused, last = answer.trace.turns
    assert malformed.malformed == WRITTEN and "right form" in malformed.feedback
    assert not good.malformed and not refused.malformed and "inverted" in refused.feedback
    assert last.answer == "7" and not last.malformed
    entries = _text_entries(answer.trace)
    assert ("malformed", WRITTEN) in entries and ("feedback", malformed.feedback) in entries


def test_a_malformed_last_turn_is_told_too(tiny_model, says, picture):
    says(tiny_model, {QUESTION: [WRITTEN] * 9})
    answer = vt.Chat(tiny_model, [picture(0)]).ask(QUESTION)
    assert answer.text is None and [turn.malformed for turn in answer.trace.turns] == [WRITTEN] * 4
    assert "right form" in answer.trace.turns[-1].feedback


def test_a_malformed_turn_is_printed(answer, capsys):
    commands._print_answer(answer)
    shown = capsys.readouterr().out.splitlines()
    at = shown.index(f"malformed: {WRITTEN}")
    assert shown[at + 1].startswith("rejected: The turn is not in the right form")


def test_an_answer_prints_in_a_line_and_is_a_picture_in_a_notebook(answer):
    assert repr(answer) == "Answer('7', why='3 turns are used up', turns=4, zooms=1)"
    assert max(len(repr(turn)) for turn in answer.trace.turns) < 400, "no pixels"
    with Image.open(io.BytesIO(answer._repr_png_())) as picture:
        assert picture.width >= 960


def test_an_answer_is_plain_data_too(answer):
    data = json.loads(json.dumps(answer.to_json()))
    assert (data["answer"], data["why"], data["question"]) == ("7", "3 turns are used up", QUESTION)
    first, malformed, *_ = data["turns"]
    assert first["inquiry"] == "red square" and malformed["malformed"] == WRITTEN
    assert first["regions"] == [{"index": 1, "source": 0, "box": [0, 0, 32, 32]}]
    assert data["cost"]["turns"] == 4 and data["sources"] == ["the image in memory"]
