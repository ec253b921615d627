"""Ours beside the paper's outcome and format rewards; every row that differs is listed, with the reason."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from vilavt_components.rewards.answer import Answer, AnswerConfig, mean_relative_accuracy
from vilavt_components.rewards.format import Format, FormatConfig

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "rewards.json").read_text())
KINDS = {"multiple choice": "choice", "numerical": "mra", "regression": "mra", "judgment": "yes_no", "math": "number"}
ANSWER_TAG = re.compile(r"\s*<answer>(.*)</answer>\s*", re.S)
ROWS = [row for row in GOLDEN["rows"] if row["question_type"].strip().lower() in KINDS and row["model_output"]]
DIFFERENT = {
    ("Apple", "A"): (0, "it only begins with the letter"),
    ("yes or no", "no"): (0, "it says both"),
    ("1_7", "17"): (0, "underscores are how programs group figures, not people"),
    ("$17$", "17"): (1, "the number in a formula is the number"),
    ("true", "yes"): (1, "true is yes"),
    ("(B)", "B"): (1, "the letter in brackets is the letter"),
    ("1/2", "0.5"): (1, "they are equal"),
    ("200", "400"): (0.1, "a relative error of exactly .5 reaches the threshold .5"),
    ("5.7", "6"): (1, "a relative error of exactly .05 reaches .95; the paper rounds and compares strictly"),
}
"""(answer, truth) -> what ours gives, and why it is right."""

DIFFERENT_FORMAT = {
    "two thinks": "a turn has exactly one thought",
    "only think no tag": "a turn calls the tool or answers",
    "tool and answer in one turn": "a turn calls the tool or answers, not both",
    "two tools second bad": "a turn has one call",
    "empty list": "a dialogue without a turn has no format",
    "last turn is user": "the last turn answers",
}
"""The dialogues to which the paper gives 1 and ours 0, and why."""


def bare(text):
    match = ANSWER_TAG.fullmatch(text)
    return (match[1] if match else text).strip()


def case(row):
    return bare(row["model_output"]), bare(row["ground_truth"])


def name(row):
    return f"{row['question_type'].strip()}: {' for '.join(case(row))}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_outcome_reward(row, ask, answering):
    answer, truth = case(row)
    kind = KINDS[row["question_type"].strip().lower()]
    expected = DIFFERENT[case(row)][0] if case(row) in DIFFERENT else row["reward"]
    assert Answer(AnswerConfig()).score(ask(kind, truth), answering(answer)) == pytest.approx(expected, abs=1e-6)


def test_every_row_listed_as_different_is_there_and_differs():
    paper = {case(row): row["reward"] for row in ROWS}
    for row, (ours, why) in DIFFERENT.items():
        assert paper[row] != pytest.approx(ours, abs=1e-6), why


@pytest.mark.parametrize("row", GOLDEN["mean_relative_accuracy"], ids=lambda row: f"{row['found']} for {row['truth']}")
def test_mean_relative_accuracy_is_that_of_the_papers_evaluation(row):
    found, truth = Fraction(str(row["found"])), Fraction(str(row["truth"]))
    assert mean_relative_accuracy(found, truth) == pytest.approx(row["reached"], abs=1e-6)


@pytest.mark.parametrize("row", GOLDEN["format_rows"], ids=lambda row: row["name"])
def test_the_format_reward(row, ask, play):
    # The boxes fit an image of hundreds of steps; the one here has four.
    texts = [(text or "").replace("100, 200, 300, 400", "1, 2, 3, 4") for text in row["turns"]]
    expected = 0 if row["name"] in DIFFERENT_FORMAT else row["reward"]
    assert Format(FormatConfig()).score(ask("text", "A"), play(texts)) == expected


def test_every_dialogue_listed_as_different_is_there_and_differs():
    paper = {row["name"]: row["reward"] for row in GOLDEN["format_rows"]}
    assert {name: paper[name] for name in DIFFERENT_FORMAT} == dict.fromkeys(DIFFERENT_FORMAT, 1)
