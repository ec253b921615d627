"""Reward `answer`: what is right, kind by kind."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.common.answers.boxes import read_box, region_box_iou
from vilavt_components.common.answers.reading import is_same_text, read_choice, read_number
from vilavt_components.common.answers.scoring import mean_relative_accuracy
from vilavt_components.rewards.answer import AnswerConfig, AnswerReward
from vilavt_toolkit.contracts import Sample, Trajectory, Turn
from vilavt_toolkit.errors import InputError

OPTIONS = ["red square", "blue circle", "green diamond"]


@pytest.fixture
def score(ask, answering):
    def scored(kind, truth, answer, **settings):
        tags = {"options": settings.pop("options")} if "options" in settings else {}
        return AnswerReward(AnswerConfig(**settings)).score(ask(kind, truth, **tags), answering(answer))

    return scored


@pytest.mark.parametrize("answer", ["B", "b", " B ", "(B)", "(b)", "B.", "B)", "(B).", '"B"', "\\boxed{B}", "$B$"])
@pytest.mark.parametrize("truth", ["B", "b", "(B)", "B."])
def test_a_choice_is_its_letter_however_it_is_framed(score, truth, answer):
    assert score("choice", truth, answer) == 1


@pytest.mark.parametrize(
    "answer", ["A", "B is what", "Banana", "A or B", "A. B. C.", "B, C", "AB", "the letter B", "?"]
)
def test_a_choice_is_nothing_but_its_letter(score, answer):
    assert score("choice", "B", answer) == 0


@pytest.mark.parametrize("answer", ["B", "(b)", "blue circle", "Blue  circle.", "B. blue circle", "(B) blue circle"])
@pytest.mark.parametrize("truth", ["B", "blue circle", "B. Blue circle"])
def test_an_option_is_named_by_letter_text_or_both(score, truth, answer):
    assert score("choice", truth, answer, options=OPTIONS) == 1
    assert score("choice", truth, answer, options=["A. red square", "B. blue circle", "C. green diamond"]) == 1


@pytest.mark.parametrize("answer", ["B. red square", "circle", "B red square", "A. B. blue circle", "D"])
def test_letter_and_text_must_agree(score, answer):
    assert score("choice", "B", answer, options=OPTIONS) == 0


def test_a_text_that_several_options_share_names_none():
    assert read_choice("same", ["same", "same"]) is None
    assert read_choice("B", ["same", "same"]) == "b"


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("0.5", "1/2"),
        ("1/2", "0.5"),
        ("0.5", "\\frac{1}{2}"),
        ("-1/2", "-\\frac{1}{2}"),
        ("0.5", "\u00bd"),
        ("1.5", "1\u00bd"),
        ("1.5", "1\\frac{1}{2}"),
        ("-1.5", "-1 1/2"),
        ("0.5", "\\frac12"),
        ("0.5", "50%"),
        ("25%", "0.25"),
        ("25%", "25"),
        ("25%", "25 %"),
        ("1234567.5", "1,234,567.5"),
        ("1,234", "1234"),
        ("2000", "2e3"),
        ("17", "17.0"),
        ("17", "+17"),
        ("-8", "\u22128"),
        ("0", "-0.0"),
        ("0.1", ".1"),
        ("12", "12."),
        ("12", "$12$"),
        ("5", "\\boxed{5}"),
    ],
)
def test_numbers_are_equal_in_value(score, truth, answer):
    assert score("number", truth, answer) == 1


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("0.5", "5"),
        ("25", "25%"),
        ("12", "12 or 13"),
        ("1234", "1,23,4"),
        ("17", "1_7"),
        ("17", "seventeen"),
        ("102", "10\u00b2"),
        ("5.5", "1\u00bd1"),
        ("5.5", "1\\frac{1}{2}"),
        ("0", "1/0"),
        ("1", "nan"),
        ("1", "inf"),
        ("3", "x=3"),
        ("0.333", "1/3"),
        ("1", "1" + "0" * 2000),
        ("1", "1e999999999"),
    ],
)
def test_what_is_another_number_or_none_is_wrong(score, truth, answer):
    assert score("number", truth, answer) == 0


def test_a_tolerance_is_relative_and_reached_exactly(score):
    assert score("number", "0.333", "1/3", tolerance=0.01) == 1
    assert score("number", "1", "1.3", tolerance=0.3) == 1
    assert score("number", "1", "1.31", tolerance=0.3) == 0
    assert score("number", "-100", "-101", tolerance=0.01) == 1
    assert score("number", "0", "0.01", tolerance=0.5) == 0


def test_mean_relative_accuracy_counts_thresholds_that_are_reached(score):
    assert score("mra", "4", "3") == 0.6
    assert score("mra", "4", "4.0") == 1
    assert score("mra", "4", "2") == 0.1
    assert score("mra", "4", "1.99") == 0
    assert score("mra", "-4", "-3") == 0.6
    assert score("mra", "0", "0") == 1
    assert score("mra", "0", "0.001") == 0
    assert score("mra", "4", "about 4") == 0


def test_strict_mean_relative_accuracy_counts_thresholds_that_are_passed(score):
    assert score("mra", "4", "3", strict=True) == 0.5
    assert score("mra", "4", "2", strict=True) == 0
    assert score("mra", "4", "4", strict=True) == score("mra", "0", "0", strict=True) == 1


def test_a_view_change_is_scored_axis_by_axis(score):
    truth = "move_right:1.0,rotate_up:20"
    assert score("view_change", truth, "rotate_up:20, move_right:1") == 1
    assert score("view_change", truth, "move_right:1.0,rotate_up:10") == pytest.approx(0.82)
    assert score("view_change", truth, "move_left:1.0,rotate_up:20") == 0.8
    assert score("view_change", truth, "move_right:2.0,move_left:1.0,rotate_up:20") == 1
    assert score("view_change", truth, "move_right:1.0,rotate_up:20,move_up:0.25") == 0.8


@pytest.mark.parametrize("answer", ["", "move_right", "move_right:far", "jump:1", "move_right:1,move_right:2", "1.0"])
def test_what_is_no_view_change_scores_nothing(score, answer):
    assert score("view_change", "move_right:1.0", answer) == 0


@settings(deadline=None)
@given(st.fractions(), st.fractions().filter(bool), st.fractions(min_value="1/1000").filter(bool))
def test_mean_relative_accuracy_does_not_depend_on_the_unit(found, truth, unit):
    score = mean_relative_accuracy(found, truth)
    assert score in {step / 10 for step in range(11)}
    assert mean_relative_accuracy(found * unit, truth * unit) == score
    assert mean_relative_accuracy(2 * truth - found, truth) == score


@pytest.mark.parametrize("answer", ["yes", "Yes.", "TRUE", "true", " yes "])
def test_yes_is_true(score, answer):
    assert score("yes_no", "yes", answer) == score("yes_no", "true", answer) == 1
    assert score("yes_no", "no", answer) == score("yes_no", "False", answer) == 0


@pytest.mark.parametrize("answer", ["yes or no", "noyes", "yes, no", "y", "maybe", "not true", "1"])
def test_yes_and_no_at_once_is_neither(score, answer):
    assert score("yes_no", "yes", answer) == score("yes_no", "no", answer) == 0


def test_a_box_is_right_by_its_overlap(score):
    truth = "[0, 0, 10, 10]"
    assert score("box", truth, "[0, 0, 10, 10]") == 1
    assert score("box", truth, "[0, 0, 10, 5]") == 1
    assert score("box", truth, "[0, 0, 10, 4.9]") == 0
    assert score("box", truth, "[0, 0, 10, 2.5]", iou=None) == 0.25
    assert score("box", truth, "[20, 20, 30, 30]", iou=None) == 0


@pytest.mark.parametrize("answer", ['{"bbox_2d": [1, 2, 5, 6]}', '{"index": 0, "bbox_2d": [1, 2, 5, 6]}', "[1,2,5,6]"])
def test_a_box_may_be_written_as_in_a_tool_call(score, answer):
    assert score("box", "[1, 2, 5, 6]", answer) == score("box", '{"index": 0, "bbox_2d": [1, 2, 5, 6]}', answer) == 1
    assert score("box", '{"index": 1, "bbox_2d": [1, 2, 5, 6]}', answer) == 0


@pytest.mark.parametrize(
    "answer",
    [
        '["1", "2", "5", "6"]',
        "[5, 6, 1, 2]",
        "[1, 2, 1, 6]",
        "[1, 2, 5]",
        "[1, 2, 5, NaN]",
        "[1, 2, 5, Infinity]",
        "[1, 2, 5, 1e999]",
        "[[1, 2, 5, 6]]",
        "[1, 2, 5, 6], [7, 7, 8, 8]",
        "[true, 2, 5, 6]",
        '{"index": true, "bbox_2d": [1, 2, 5, 6]}',
        '{"index": 0, "bbox_2d": [1, 2, 5, 6], "more": 1}',
        "[" * 900,
    ],
)
def test_what_is_no_box_scores_nothing(score, answer):
    assert score("box", "[1, 2, 5, 6]", answer, iou=None) == 0


def test_boxes_have_as_many_axes_as_their_source(score):
    assert score("box", "[0, 0, 0, 2, 2, 2]", "[0, 0, 0, 2, 2, 1]") == 1
    assert score("box", "[0, 0, 0, 2, 2, 2]", "[0, 0, 2, 2]", iou=None) == 0


sides = st.tuples(st.integers(0, 999), st.integers(1, 999))
boxes = st.tuples(sides, sides).map(
    lambda axes: (0, (*(float(low) for low, _ in axes), *(float(low + length) for low, length in axes)))
)


@settings(deadline=None)
@given(boxes, boxes)
def test_overlap_is_symmetric_and_whole_only_for_the_same_box(first, second):
    shared = region_box_iou(first, second)
    assert 0 <= shared <= 1
    assert shared == region_box_iou(second, first)
    assert (shared == 1) == (first == second)


def test_text_is_compared_without_case_spaces_and_frames(score):
    assert score("text", "Red square", " red  SQUARE. ") == 1
    assert score("text", "red", "reddish") == 0
    assert score("text", "...", "!") == 0
    assert score("text", "...", "...") == 1


def test_without_a_tag_an_answer_is_text(answering):
    sample = Sample("s1", "what?", "0.5", ())
    assert AnswerReward(AnswerConfig()).score(sample, answering("0.5")) == 1
    assert AnswerReward(AnswerConfig()).score(sample, answering("1/2")) == 0
    assert AnswerReward(AnswerConfig(kind="number")).score(sample, answering("1/2")) == 1


@pytest.mark.parametrize("kind", ["choice", "number", "mra", "yes_no", "box", "view_change"])
def test_a_truth_that_cannot_be_read_is_named_with_its_sample(ask, answering, kind):
    with pytest.raises(InputError, match=r"sample s1: its answer 'no such thing' is no"):
        AnswerReward(AnswerConfig()).score(ask(kind, "no such thing"), answering("1"))


@pytest.mark.parametrize("empty", ["", "  "])
def test_a_data_set_without_answers_is_told_instead_of_scored_as_always_wrong(ask, answering, empty):
    with pytest.raises(InputError, match="sample s1 has no answer"):
        AnswerReward(AnswerConfig()).score(ask("text", empty), answering("1"))


def test_an_unknown_kind_is_named_with_its_sample(ask, answering):
    with pytest.raises(InputError, match=r"sample s1: its tag answer_kind is 'essay'\. It must be one of text, choice"):
        AnswerReward(AnswerConfig()).score(ask("essay", "1"), answering("1"))


@pytest.mark.parametrize("kind", ["text", "choice", "number", "mra", "math", "yes_no", "box", "view_change"])
@settings(deadline=None)
@given(answer=st.text())
def test_no_answer_makes_it_stumble(kind, answer):
    truths = {"choice": "B", "yes_no": "no", "box": "[1, 2, 3, 4]", "view_change": "move_up:1"}
    sample = Sample("s1", "what?", truths.get(kind, "7"), (), tags={"answer_kind": kind, "options": OPTIONS})
    trajectory = Trajectory(turns=[Turn("seen", answer=answer)], feedback=[""])
    assert 0 <= AnswerReward(AnswerConfig(iou=None)).score(sample, trajectory) <= 1


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-1e9, max_value=1e9))
def test_a_number_reads_back_however_it_is_grouped(value):
    for text in (f"{value}", f"{value:,}", f" {value:f} "):
        assert read_number(text) == (Fraction(value), False)
    assert read_number(f"{value}%") == (Fraction(value) / 100, True)


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_a_fraction_reads_back(top, bottom):
    assert read_number(f"{top}/{bottom}") == (Fraction(top, bottom), False)


@settings(deadline=None)
@given(boxes)
def test_a_box_reads_back(box):
    index, sides = box
    assert read_box(json.dumps(list(sides))) == box
    assert read_box(json.dumps({"index": index, "bbox_3d": list(sides)})) == box


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_equality_of_texts_is_symmetric_and_holds_for_itself(first, second):
    assert is_same_text(first, first)
    assert is_same_text(first, second) == is_same_text(second, first)


@pytest.mark.parametrize(("answer", "earned"), [("25%", 1), ("25", 1), ("0.25", 1), ("20", 0.6), ("2500%", 0)])
def test_a_percentage_may_be_written_without_its_sign_where_nearness_counts(score, answer, earned):
    assert score("mra", "25%", answer, strict=True) == pytest.approx(earned)
