"""Ours beside the paper's rewards and scores, row by row; docs/vilavt-differences.md lists the rows that differ."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from vilavt_components.common.answers.scoring import (
    BENCHMARK_KINDS,
    REINFORCEMENT_KINDS,
    answer_kind_of,
    mean_relative_accuracy,
)
from vilavt_components.rewards.answer import AnswerConfig, AnswerReward
from vilavt_components.rewards.format import Format, FormatConfig
from vilavt_components.rewards.vilavt import VilavtReward, VilavtRewardConfig
from vilavt_components.tasks.files.benchmark import VilavtBenchmark
from vilavt_toolkit.errors import InputError

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "rewards.json").read_text())
ANSWER_TAG = re.compile(r"\s*<answer>(.*)</answer>\s*", re.S)
PARTS = ("overall", "format", "accuracy")


def listed():
    """Heading -> first cells of a row, the key -> (paper's, ours): the tables of the document's section on rewards."""
    section = (TESTS.parent / "docs" / "vilavt-differences.md").read_text().split("\n## Rewards\n")[1].split("\n## ")[0]
    tables = {}
    for part in section.split("\n### ")[1:]:
        heading, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
        assert all(row[-1] for row in rows), f"{heading}: a row has no reason"
        tables[heading] = {tuple(key): (paper, ours) for *key, paper, ours, _ in rows[2:]}
        assert len(tables[heading]) == len(rows) - 2, f"{heading}: a row stands there twice"
    return tables


LISTED = listed()


def bare(text):
    """The answer in what a model said, as both sides read it."""
    match = ANSWER_TAG.fullmatch(text or "")
    return (match[1] if match else text or "").strip()


def key(row):
    """The first cells of a row of answers in the document."""
    answer, truth, kind = row["model_output"], bare(row["ground_truth"]), row["question_type"].strip()
    shown = "nothing" if answer is None else f"`{bare(answer)}`" if bare(answer) else "empty"
    return shown, f"`{truth}`", kind or "none"


def name(row):
    return " ".join(key(row))


def number(value):
    """A value as the document has it: three decimals, or a word for what is none."""
    return value if isinstance(value, str) else f"{round(float(value), 3):g}"


def holds(heading, row_key, paper, ours):
    """Ours is the paper's, or the document lists the row with both."""
    expected = LISTED[heading].get(row_key, (number(paper), number(paper)))
    assert (number(paper), number(ours)) == expected, f"{heading}: {' | '.join(row_key)}"


def test_every_row_that_is_listed_is_in_the_vectors_and_differs():
    keys = {
        "Outcome in reinforcement": {key(row) for row in GOLDEN["rows"]},
        "More outcomes in reinforcement": LISTED["More outcomes in reinforcement"].keys(),
        "Score in evaluation": {key(row) for row in GOLDEN["rows"] + GOLDEN["vci_rows"]},
        "Mean relative accuracy in reinforcement": {accuracy_key(row) for row in GOLDEN["mean_relative_accuracy"]},
        "Format": {(row["name"],) for row in GOLDEN["format_rows"]},
        "Whole reward": {(row["name"], part) for row in GOLDEN["full_score_rows"] for part in PARTS},
    }
    assert LISTED.keys() == keys.keys()
    for heading, rows in LISTED.items():
        assert not rows.keys() - keys[heading]
        assert not [row for row, (paper, ours) in rows.items() if paper == ours]


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=name)
def test_the_outcome_reward(row, ask, answering):
    try:
        kind = answer_kind_of(row["question_type"], REINFORCEMENT_KINDS, "row")
        trajectory = answering(bare(row["model_output"]))
        ours = AnswerReward(AnswerConfig(strict=True)).score(ask(kind, bare(row["ground_truth"])), trajectory)
    except InputError:
        ours = "refused"
    holds("Outcome in reinforcement", key(row), row["reward"], ours)


@pytest.mark.parametrize("row", LISTED["More outcomes in reinforcement"], ids=" | ".join)
def test_more_outcomes_are_those_of_the_page(row, ask, answering):
    answer, truth, question_type = (cell.strip("`") for cell in row)
    kind = answer_kind_of(question_type, REINFORCEMENT_KINDS, "row")
    try:
        ours = number(AnswerReward(AnswerConfig(strict=True)).score(ask(kind, truth), answering(answer)))
    except InputError:
        ours = "refused"
    assert ours == LISTED["More outcomes in reinforcement"][row][1]


@pytest.fixture(scope="module")
def benchmark():
    """The task that scores the paper's benchmarks."""
    return VilavtBenchmark(VilavtBenchmark.tiny())


@pytest.mark.parametrize("row", GOLDEN["rows"] + GOLDEN["vci_rows"], ids=name)
def test_the_score_in_evaluation(row, ask, benchmark):
    try:
        kind = answer_kind_of(row["question_type"], BENCHMARK_KINDS, "row")
        ours = benchmark.score_turn(ask(kind, row["ground_truth"]), row["model_output"] or "", None)
    except InputError:
        ours = "refused"
    holds("Score in evaluation", key(row), row["evaluation"], ours)


def accuracy_key(row):
    return str(row["found"]), str(row["truth"])


@pytest.mark.parametrize("row", GOLDEN["mean_relative_accuracy"], ids=lambda row: " for ".join(accuracy_key(row)))
def test_mean_relative_accuracy(row):
    found, truth = Fraction(str(row["found"])), Fraction(str(row["truth"]))
    strict = mean_relative_accuracy(found, truth, strict=True)
    holds("Mean relative accuracy in reinforcement", accuracy_key(row), row["strict"], strict)
    assert mean_relative_accuracy(found, truth) == pytest.approx(row["reached"], abs=1e-6)


@pytest.fixture
def played(play):
    """What a model said in the paper's dialogue, played in ours: its boxes fit an image of hundreds of steps."""
    return lambda turns: play([(text or "").replace("100, 200, 300, 400", "1, 2, 3, 4") for text in turns])


@pytest.mark.parametrize("row", GOLDEN["format_rows"], ids=lambda row: row["name"])
def test_the_format_reward(row, ask, played):
    ours = Format(FormatConfig()).score(ask("text", "A"), played(row["turns"]))
    holds("Format", (row["name"],), row["reward"], ours)


@pytest.mark.parametrize("row", GOLDEN["full_score_rows"], ids=lambda row: row["name"])
def test_the_whole_reward(row, ask, played):
    sample = ask(answer_kind_of(row["question_type"], REINFORCEMENT_KINDS, "row"), row["ground_truth"])
    trajectory = played(row["turns"])
    ours = {
        "overall": VilavtReward(VilavtRewardConfig()),
        "format": Format(FormatConfig()),
        "accuracy": AnswerReward(AnswerConfig(strict=True)),
    }
    for part, reward in ours.items():
        holds("Whole reward", (row["name"], part), row[part], reward.score(sample, trajectory))
