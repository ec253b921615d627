"""Runs side by side: one table in percent with intervals, only of runs that were asked the same."""

from __future__ import annotations

import json
import re

import pytest

from vilavt_toolkit.cli.app import run


def estimate(mean, items):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "items": items, "clusters": items}


def summary(modulators, modulated=0.8, **task):
    scores = {"modulated": modulated, "unmodulated": 0.1, "shuffled": 0.4}
    asked = {"needs a zoom": 20, "several to read": 6}
    return {
        "arms": {
            arm: {"accuracy": {subset: estimate(mean, n) for subset, n in asked.items()}}
            for arm, mean in scores.items()
        },
        "differences": [
            {"first": "modulated", "second": other, "subset": subset, **estimate(modulated - scores[other], n)}
            for other in ("unmodulated", "shuffled")
            for subset, n in asked.items()
        ],
        "seed": 0,
        "step": 1500,
        "versions": {"torch": "2.11"},
        "recipe": {
            "model": {"encoder": {"name": "timm"}, "modulator": modulators},
            "task": {"name": "digit_scenes", **task},
            "eval": {"items": 20, "batch_size": len(modulators)},
        },
    }


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Writes the evaluation of a run and returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def make(name, *given, **task):
        folder = tmp_path / "runs" / name / "eval"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary(*given, **task)))
        return f"runs/{name}"

    return make


@pytest.fixture
def two(evaluated):
    return [evaluated("film", {"name": "film"}), evaluated("both", [{"name": "film"}, {"name": "lora"}], 0.9)]


def test_every_run_has_its_arms_and_differences_in_one_table(two, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["compare", *two, "--write", "tables/mine.md"]) == 0
    shown = capsys.readouterr().out
    for cell in ("film, lora", "80.0 [75.0, 85.0]", "90.0 [85.0, 95.0]", "+50.0 [+45.0, +55.0]", "1,500 steps", "2.11"):
        assert cell in shown


def test_runs_of_a_task_that_does_not_say_which_need_a_zoom_are_compared_on_all_questions(evaluated, capsys, tmp_path):
    name, file = evaluated("film", {"name": "film"}), tmp_path / "runs" / "film" / "eval" / "summary.json"
    file.write_text(file.read_text().replace("needs a zoom", "all").replace("several to read", "mine"))
    assert run(["compare", name]) == 0
    assert "80.0" in capsys.readouterr().out


def test_the_table_can_be_read_as_markdown(two, tmp_path):
    assert run(["compare", *two, "--write", "tables/mine.md"]) == 0
    lines = [line for line in (tmp_path / "tables/mine.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert [re.split(r" *\| *", line)[1:4] for line in lines[2:]] == [
        ["runs/film", "film", "needs a zoom"],
        ["runs/both", "film, lora", "needs a zoom"],
        ["runs/film", "film", "several to read"],
        ["runs/both", "film, lora", "several to read"],
    ]


def test_in_a_file_that_exists_the_old_table_alone_is_replaced(two, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- vilavt compare -->\nold\n<!-- end of vilavt compare -->\n\nThe end.\n")
    for runs in (two, two[:1]):
        assert run(["compare", *runs, "--write", "page.md"]) == 0
    text = page.read_text()
    assert text.startswith("# Mine\n\n<!-- vilavt compare -->\n| run") and text.endswith("-->\n\nThe end.\n")
    assert "old" not in text and "runs/both" not in text and text.count("runs/film") == 2


def test_a_file_without_a_place_for_the_table_is_left_alone(two, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    assert run(["compare", *two, "--write", "page.md"]) == 2
    assert page.read_text() == "# Mine\n"
    assert "page.md has no lines <!-- vilavt compare -->" in capsys.readouterr().err


def test_runs_that_were_asked_other_questions_are_not_put_side_by_side(two, evaluated, capsys):
    harder = evaluated("harder", {"name": "film"}, difficulty=1.0)
    assert run(["compare", *two, harder]) == 2
    assert "runs/harder and runs/film were evaluated with different settings of `task`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has not been evaluated. Do that first: vilavt eval runs/film"),
        ("{", "cannot be read"),
        ('{"arms": {}}', "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_run_without_a_whole_evaluation_is_named(two, tmp_path, capsys, text, words):
    file = tmp_path / "runs/film/eval/summary.json"
    file.unlink() if text is None else file.write_text(text)
    assert run(["compare", *two]) == 1
    error = capsys.readouterr().err
    assert words in error and "runs/film" in error and "Traceback" not in error


def test_a_run_evaluated_without_an_arm_is_told_which(two, tmp_path, capsys):
    file = tmp_path / "runs/both/eval/summary.json"
    kept = json.loads(file.read_text())
    del kept["arms"]["shuffled"]
    file.write_text(json.dumps(kept))
    assert run(["compare", *two]) == 1
    assert "runs/both was evaluated without the arm 'shuffled'" in capsys.readouterr().err
