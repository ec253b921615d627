"""Question types and their kinds of answer, as tasks look them up."""

from fractions import Fraction

import pytest

from vilavt_components.common.answers.scoring import (
    BENCHMARK_KINDS,
    REINFORCEMENT_KINDS,
    Comparison,
    answer_kind_of,
    mean_relative_accuracy,
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


@pytest.mark.parametrize(
    ("kind", "truth", "answer"),
    [
        ("text", "Red", "red."),
        ("choice", "B", "(b)"),
        ("number", "0.5", "1/2"),
        ("mra", "10", "10.0"),
        ("math", "0.5", "1/2"),
        ("yes_no", "no", "False"),
        ("box", "[0, 0, 2, 2]", '{"index": 0, "bbox_2d": [0, 0, 2, 2]}'),
        ("view_change", "move_up:1", "move_up:1.0"),
    ],
)
def test_every_kind_has_its_own_comparison(ask, kind, truth, answer):
    score = score_answer(ask(kind, truth), answer)
    assert type(score) is float and score == 1
    assert score_answer(ask(kind, truth), "something else") == 0


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("choice", "letter or option"),
        ("number", "number"),
        ("mra", "number"),
        ("yes_no", "yes or no"),
        ("box", "box"),
        ("view_change", "list of moves such as move_right:1.0,rotate_up:20"),
    ],
)
def test_a_truth_that_cannot_be_read_says_what_it_should_be(ask, kind, what):
    with pytest.raises(InputError) as caught:
        score_answer(ask(kind, "such thing"), "1")
    assert str(caught.value) == f"sample s1: its answer 'such thing' is no {what}. Correct it, or its tag answer_kind."


def test_errors_of_a_sample_name_it_and_the_remedy(ask):
    with pytest.raises(InputError) as unknown:
        score_answer(ask("essay", "1"), "1")
    assert str(unknown.value) == (
        "sample s1: its tag answer_kind is 'essay'. "
        "It must be one of text, choice, number, mra, math, yes_no, box, view_change."
    )
    with pytest.raises(InputError) as empty:
        score_answer(ask("text", " "), "1")
    assert str(empty.value) == "sample s1 has no answer to compare with. Take another split."


@pytest.mark.parametrize(
    ("ahead", "back"),
    [
        ("move_right", "move_left"),
        ("move_up", "move_down"),
        ("move_forward", "move_backward"),
        ("rotate_right", "rotate_left"),
        ("rotate_up", "rotate_down"),
    ],
)
def test_every_axis_of_a_view_change_is_a_fifth_and_has_two_directions(ask, ahead, back):
    truth = ask("view_change", f"{ahead}:4")
    assert score_answer(truth, f"{ahead}:4") == 1
    assert score_answer(truth, f"{ahead}:5,{back}:1") == 1
    assert score_answer(truth, f"{ahead}:3") == pytest.approx(0.8 + 0.6 / 5)
    assert score_answer(truth, f"{back}:4") == 0.8
    assert score_answer(truth, f"{back}:-4") == 1


def test_on_an_axis_without_motion_any_motion_is_wrong(ask):
    still = ask("view_change", "move_right:4")
    assert score_answer(still, "move_right:4,move_up:0.25") == 0.8
    assert score_answer(still, "move_right:4,move_up:0") == 1
    assert score_answer(ask("view_change", "move_down:2.6"), "rotate_down:0.3,rotate_right:2.3") == 0.4


@pytest.mark.parametrize(
    ("found", "reached", "passed"),
    [(100, 1, 1), (105, 1, 0.9), (95, 1, 0.9), (106, 0.9, 0.9), (150, 0.1, 0), (50, 0.1, 0), (151, 0, 0), (-100, 0, 0)],
)
def test_ten_thresholds_five_percent_apart_are_reached_or_passed(found, reached, passed):
    assert mean_relative_accuracy(Fraction(found), Fraction(100)) == reached
    assert mean_relative_accuracy(Fraction(found), Fraction(100), strict=True) == passed
    assert mean_relative_accuracy(-Fraction(found), Fraction(-100)) == reached


def test_a_box_is_right_from_the_least_overlap_on(ask):
    half = ask("box", "[0, 0, 4, 2]")
    for iou, score in ((0.5, 1), (0.51, 0), (None, 0.5)):
        assert score_answer(half, "[0, 0, 4, 1]", how=Comparison(iou=iou)) == score
