"""Question types and their kinds of answer, as tasks look them up."""

import pytest

from vilavt_components.common.answers.scoring import (
    BENCHMARK_KINDS,
    REINFORCEMENT_KINDS,
    Comparison,
    answer_kind_of,
    score_answer,
)
from vilavt_toolkit.errors import InputError


@pytest.mark.parametrize("written", ["multiple choice", "Multiple Choice ", "MULTIPLE  CHOICE"])
def test_a_question_type_is_known_however_it_is_written(written):
    assert answer_kind_of(written, REINFORCEMENT_KINDS, "line 3") == "choice"


def test_a_number_is_graded_in_reinforcement_and_right_or_wrong_in_a_benchmark(ask):
    scores = [
        score_answer(ask(answer_kind_of("numerical", kinds, "line 3"), "12"), "13")
        for kinds in (REINFORCEMENT_KINDS, BENCHMARK_KINDS)
    ]
    assert scores == [0.9, 0]


@pytest.mark.parametrize("unknown", ["", "essay", "multiplechoice"])
def test_an_unknown_question_type_is_named_with_its_place(unknown):
    with pytest.raises(InputError, match=f"line 3: the question type is '{unknown}'. It must be one of multiple"):
        answer_kind_of(unknown, REINFORCEMENT_KINDS, "line 3")


@pytest.mark.parametrize("missing", [None, "", " \n"])
def test_a_missing_answer_is_wrong_and_no_crash(ask, missing):
    assert score_answer(ask("choice", "B"), missing) == 0


def test_how_exact_an_answer_must_be_is_for_the_caller_to_say(ask):
    assert score_answer(ask("number", "3"), "3.1") == 0
    assert score_answer(ask("number", "3"), "3.1", how=Comparison(tolerance=0.1)) == 1
    assert score_answer(ask("text", "1/2"), "0.5", kind="number") == 1
