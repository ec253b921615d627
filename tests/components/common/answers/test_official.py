"""The paper's evaluation, rule by rule, where its vectors hold no row of the kind."""

import pytest

from vilavt_components.common.answers.official import extract_first_answer, score_official
from vilavt_toolkit.errors import InputError


@pytest.mark.parametrize(
    ("kind", "truth", "text", "score"),
    [
        ("choice", "D", "<think>x</think><answer>D) the lamp</answer>", 1),
        ("choice", "B. chair", "<answer>B. chair</answer>", 1),
        ("choice", "A", "A, because it is red", 1),
        ("choice", "A", "<answer>A</answer><answer>B</answer>", 1),
        ("choice", "B", "<answer>A</answer><answer>B</answer>", 0),
        ("choice", "A", "<think>so</think><answer>A</answer> I am sure", 1),
        ("choice", "A", "<think>an <answer> tag</think><answer>A</answer>", 0),
        ("choice", "B", "Because B", 1),
        ("choice", "B", "<answer></answer>", 0),
        ("choice", "C", "<tool>C</tool>", 0),
        ("yes_no", "no", r"\boxed{\text{No}}", 1),
        ("yes_no", "yes", r"\text{Yes}", 1),
        ("yes_no", "Yes", "**yes**", 1),
        ("yes_no", "yes", "(yes)", 1),
        ("yes_no", "yes", "yesterday", 0),
        ("number", "42", "42%", 0),
        ("number", "4.5", "9/2", 0),
        ("number", "17", "17.", 0),
        ("number", "17.0", "17.004", 1),
        ("mra", "0", "0", 1),
        ("mra", "10", "nan", 0),
        ("view_change", "move_down:2.6", "rotate_down:0.3,rotate_right:2.3", 0.4),
        ("view_change", "move_up:1", "up", 0),
        ("view_change", "move_up:1", "move_up:1,", 0),
        ("text", "a red car", "<answer>A red car.</answer>", 1),
    ],
)
def test_an_answer_scores_what_the_paper_gives_it(ask, kind, truth, text, score):
    assert score_official(ask(kind, truth), text) == pytest.approx(score)


def test_a_tiny_error_of_a_truth_of_0_is_nearly_right(ask):
    assert score_official(ask("mra", "0"), "1e-9") >= 0.8


@pytest.mark.parametrize("kind", ["choice", "number", "mra", "yes_no", "view_change", "text", "math"])
def test_a_sample_without_an_answer_is_refused_by_its_id(ask, kind):
    with pytest.raises(InputError, match="has no answer to compare with"):
        score_official(ask(kind, " "), "A")


def test_the_first_closed_answer_is_taken():
    assert extract_first_answer("a <answer> b </answer> c <answer>d</answer>") == "b"
    assert extract_first_answer("<answer>never closed") == "<answer>never closed"
    assert extract_first_answer("</answer><answer>x</answer>") == "x"
