"""Benchmarks in their one format: what is asked, what is right, and the tables of the papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vilavt_components.common.answers.reading import read_choice
from vilavt_components.tasks.files.benchmark import VilavtBenchmark, VilavtBenchmarkConfig
from vilavt_components.tasks.files.benchmark_tables import (
    detect_table,
    score_by_category,
    score_sparbench,
    score_vsibench,
)
from vilavt_components.tasks.files.questions import find_options
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import InputError, UsageError

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "aggregation.json").read_text())


def row(**changed: Any) -> dict[str, Any]:
    plain = {
        "question_id": "0",
        "question": "Which?",
        "answer": "A",
        "problem_type": "multiple choice",
        "images": ["a.png"],
    }
    return {**plain, **changed}


def task_of(folder: Path, *rows: dict[str, Any], **settings: Any) -> VilavtBenchmark:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "bench.json").write_text(json.dumps(rows))
    return VilavtBenchmark(VilavtBenchmarkConfig(files=str(folder / "bench.json"), **settings))


def asked(folder: Path, **changed: Any) -> Sample:
    return task_of(folder, row(**changed)).sample("test", 0)


def golden_table(name: str) -> dict[str, tuple[float, int]]:
    found: dict[str, tuple[float, int]] = {}
    for key, value in GOLDEN[name]["result"].items():
        if isinstance(value, dict):
            found[key] = value["score"], value["count"]
            continue
        names = ("Low", "Medium", "High") if key == "Overall" else (key,)
        found |= {name: (each["score"], each["count"]) for name, each in zip(names, value, strict=True)}
    return found


def items(name: str) -> tuple[list[str], list[float]]:
    return tuple(zip(*((each["original_question_type"], each["score"]) for each in GOLDEN[name]["items"]), strict=True))


@pytest.mark.parametrize(("name", "table"), [("vsibench", score_vsibench), ("sparbench", score_sparbench)])
def test_the_table_is_the_papers_row_by_row(name, table):
    found, wanted = table(*items(name), True), golden_table(name)
    assert set(found) == set(wanted)
    for key, (score, count) in wanted.items():
        assert round(sum(found[key]) / len(found[key]), 3) == score, key
        if key not in ("Overall", "Total"):  # means of types, not of items
            assert len(found[key]) == count, key


def test_relative_directions_are_the_mean_of_three_levels_as_published():
    types = ["object_rel_direction_easy"] * 3 + ["object_rel_direction_hard", "object_rel_direction_medium"]
    scores = [1.0, 1.0, 1.0, 0.0, 0.5]
    assert sum(score_vsibench(types, scores, False)["Rel. Dir"]) / 3 == pytest.approx(0.5)
    assert sum(score_vsibench(types, scores, True)["Rel. Dir"]) / 5 == pytest.approx(0.7)


def test_a_truth_that_only_the_official_rule_reads_needs_that_rule(tmp_path):
    official = task_of(tmp_path, row(answer="B. chair"))
    assert official.score(official.sample("test", 0), "b") == 1
    with pytest.raises(InputError, match="cannot be read as kind 'choice'"):
        task_of(tmp_path, row(answer="B. chair"), scoring="strict").sample("test", 0)


def test_the_text_of_the_turn_counts_officially_and_the_answer_strictly(tmp_path):
    text = "<answer>A</answer><answer>B</answer>"
    official, strict = task_of(tmp_path, row()), task_of(tmp_path, row(), scoring="strict")
    assert official.score_turn(official.sample("test", 0), text, None) == 1
    assert strict.score_turn(strict.sample("test", 0), text, None) == 0


def test_the_table_is_told_by_the_question_types():
    assert detect_table(items("vsibench")[0]) == "vsibench" and detect_table(items("sparbench")[0]) == "sparbench"
    assert detect_table(["Motion (Cam.)", "MSR"]) == "category"
    assert score_by_category(["b", "a", "b", ""], [1, 0, 0, 1]) == {"a": [0], "b": [1, 0]}


SPAR = {
    "Low": [f"{kind}_prediction_{way}" for kind in ("depth", "distance") for way in ("oc", "oc_mv", "oo", "oo_mv")],
    "Medium": ["position_matching", "camera_motion_infer", "view_change_infer"],
    "High": [
        *("distance_infer_center_oo", "distance_infer_center_oo_mv"),
        *("obj_spatial_relation_oc_mv", "obj_spatial_relation_oo", "obj_spatial_relation_oo_mv"),
        *(f"spatial_imagination_{way}" for way in ("oc", "oc_mv", "oo", "oo_mv")),
    ],
}
"""The levels and types of SPAR-Bench as the paper's scorer has them; the made-up vectors hold ten of the twenty."""


def test_every_type_of_sparbench_is_in_its_level_and_in_the_total():
    types = [kind for kinds in SPAR.values() for kind in kinds]
    found = score_sparbench(types, [1.0] * len(types))
    assert len(types) == 20 and detect_table(types) == "sparbench"
    assert {level: len(found[level]) for level in SPAR} == {level: len(kinds) for level, kinds in SPAR.items()}
    assert len(found["Total"]) == 20 and set(types) < set(found)


def test_metrics_are_grouped_by_what_the_file_groups_by(tmp_path):
    rows = [row(question_id=str(n), category=kind) for n, kind in enumerate(["single", "cross", "single"])]
    task = task_of(tmp_path, *rows)
    samples = [task.sample("test", index) for index in range(3)]
    assert task.metrics(samples, [1.0, 0.0, 0.0]) == {"cross": [0.0], "single": [1.0, 0.0]}


def test_options_follow_the_question_unless_they_stand_in_it(tmp_path):
    assert asked(tmp_path, options=["A. red", "B. blue"]).question == "Which?\nA. red\nB. blue"
    assert asked(tmp_path, options=["red", "blue"]).question == "Which?\nA. red\nB. blue"
    assert asked(tmp_path, options={"A": "red", "B": "blue"}).question == "Which?\nA. red\nB. blue"
    assert asked(tmp_path, question="Which? A. red B. blue", options=["red", "blue"]).question.count("red") == 1


def test_options_are_listed_though_their_words_stand_in_the_question(tmp_path):
    question = "Is the cup to the left or right of the plate?"
    found = asked(tmp_path, question=question, options=["left", "right"])
    assert found.question == f"{question}\nA. left\nB. right"


def test_options_keep_their_own_letters(tmp_path):
    options = {"B": "bee", "C": "cee", "D": "dee"}
    sample = asked(tmp_path, options=options, answer="D")
    assert sample.question == "Which?\nB. bee\nC. cee\nD. dee"
    assert [read_choice(answer, sample.tags["options"]) for answer in ("D", "dee", "B. bee", "A")] == [
        "d",
        "d",
        "b",
        None,
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"C": "cee", "A": "aye", "B": "bee"},
        {"C": "C. cee", "A": "A. aye", "B": "B. bee"},
        ["C. cee", "A. aye", "B. bee"],
        ["(C) cee", "(A) aye", "(B) bee"],
    ],
)
def test_letters_in_another_order_stay_with_their_options(tmp_path, options):
    sample = asked(tmp_path, options=options, answer="B")
    assert "A. A" not in sample.question and "C. C" not in sample.question
    answers = ("B", "B. bee", "bee", "A")
    assert [read_choice(each, sample.tags["options"]) for each in answers] == ["b", "b", "b", "a"]


def test_more_options_than_letters_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"options: has 30 options\. Each needs a letter, so give at most 26"):
        asked(tmp_path, options=[f"option {number}" for number in range(30)])
    assert asked(tmp_path, options=[f"option {number}" for number in range(26)]).question.endswith("Z. option 25")


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Where? Choices: A. On it. B. Under it. C. Gone.\nAnswer with a letter.", ("On it.", "Under it.", "Gone.")),
        ("Where? Choices: A. On it. B. Under it. Please answer with one letter.", ("On it.", "Under it.")),
        ("Which?\nOptions: A: Left while moving, B: Forward, C: Back", ("Left while moving", "Forward", "Back")),
        ("How many? Available options:\nA. eight\nB. nine\nPlease think.", ("eight", "nine")),
        ("Which one: (A) this, (B) that", ("this", "that")),
        ("What did A. Turing build? A. a car B. a machine", ("a car", "a machine")),
        ("What is this?", ()),
    ],
)
def test_options_inside_a_question_are_found(question, options):
    assert find_options(question) == options


def test_letters_in_a_question_that_are_no_options_forbid_no_answer(tmp_path):
    task = task_of(tmp_path, row(question="Is A. Smith or B. Jones in the room marked D?", answer="D"))
    assert task.score(task.sample("test", 0), "D") == 1


@pytest.mark.parametrize(
    ("changed", "right", "wrong"),
    [
        (
            {"answer": "B", "options": ["A. red", "B. blue"]},
            ["B", "(b)", "B. blue", "blue"],
            ["A", "", "C", "B is what"],
        ),
        ({"answer": "A. red", "options": ["A. red", "B. blue"]}, ["A", "red"], ["B", "A. blue"]),
        ({"question": "Which? A. red B. blue", "answer": "B"}, ["B", "B. blue"], ["A", "B. red"]),
        ({"problem_type": "numerical", "answer": "3.14159"}, ["3.14", "3.1412"], ["3.1", "three"]),
        ({"problem_type": "free-form", "answer": "a red car"}, ["A red car."], ["a car"]),
        ({"problem_type": "vci", "answer": "move_right:1.0,rotate_up:20"}, ["rotate_up:20,move_right:1"], ["left"]),
    ],
)
def test_answers_are_scored_by_the_type_of_the_problem(tmp_path, changed, right, wrong):
    task = task_of(tmp_path, row(**changed), scoring="strict")
    sample = task.sample("test", 0)
    assert [task.score(sample, answer) for answer in right] == [1.0] * len(right)
    assert [task.score(sample, answer) for answer in (*wrong, None)] == [0.0] * (len(wrong) + 1)


def test_a_regression_is_scored_by_how_near_it_is(tmp_path):
    task = task_of(tmp_path, row(problem_type="regression", answer="4"))
    assert task.score(task.sample("test", 0), "3") == pytest.approx(0.6)


def test_image_tags_go_where_they_lead_and_name_the_image_where_they_stand_between_words(tmp_path):
    leading = asked(tmp_path, question="<image> <image>\nWhich is larger?", images=["a.png", "b.png"])
    assert leading.question == "Which is larger?" and len(leading.originals) == 2
    within = asked(tmp_path, question="Is <image> or <image> larger?", images=["a.png", "b.png"])
    assert within.question == "Is [image 0] or [image 1] larger?"


def test_one_question_may_be_about_text_alone(tmp_path):
    assert asked(tmp_path, images=None).originals == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"problem_type": "essay"}, r"item 0 \(counted from 0\), problem_type: is 'essay'. It must be one of multiple"),
        ({"answer": None}, "answer: is missing. Add it"),
        ({"problem_type": "regression", "answer": "far"}, "answer: is 'far' .* cannot be read as kind 'mra'"),
        (
            {"question": "<image><image> Which?"},
            "question: has 2 <image> tags for 1 image. Write one for each image or none",
        ),
        ({"images": ["gone.png"]}, r"images\[0\]: .*gone.png does not exist. Check the path, or set task.root"),
        ({"options": 3}, r"options: is 3 \(int\). It must be a list of texts"),
        ({"options": {"1": "red", "2": "blue"}}, r"options: has the key '1'. Its keys must be different letters"),
        ({"options": {"text": ["a"], "label": ["A"]}}, r"options: has the key 'text'. Its keys must be different"),
        ({"options": {"A": {"text": "red"}, "B": "blue"}}, r"options.A: is .*It must be text"),
        ({"options": {"A": "red", "a": "blue"}}, r"options: has a letter in both cases"),
    ],
)
def test_a_bad_question_is_named_with_its_place_and_field(tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        task_of(tmp_path, row(**changed)).length("test")


def test_a_benchmark_has_no_training_samples_unless_files_are_named(tmp_path):
    task = task_of(tmp_path, row())
    assert (task.length("train"), task.length("test")) == (0, 1)
    with pytest.raises(UsageError, match=r"split 'val' of 'vilavt_benchmark' is empty. Set task.val_files"):
        task.length("val")
