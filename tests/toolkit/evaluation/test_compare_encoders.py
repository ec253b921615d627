"""Encoders side by side: accuracy, parameters and seconds per step of runs that were asked the same."""

from __future__ import annotations

import json

import pytest

from vilavt_toolkit.cli.app import run


def estimate(mean):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "items": 20, "clusters": 20}


def summary(encoder, modulated):
    scores = {"single_pass": 0.1, "modulated": modulated, "unmodulated": 0.2, "shuffled": 0.2}
    pair = {"first": "modulated", "second": "single_pass", "subset": "needs a zoom"}
    return {
        "arms": {
            arm: {"accuracy": {"needs a zoom": estimate(mean), "needs none": estimate(0.6)}}
            for arm, mean in scores.items()
        },
        "differences": [pair | estimate(modulated - 0.1)],
        "seed": 0,
        "step": 700,
        "versions": {"torch": "2.14"},
        "recipe": {
            "model": {"modulator": {"name": "film"}, "encoder": {"name": encoder}},
            "task": {"name": "digit_scenes"},
            "eval": {"items": 20},
        },
    }


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two evaluated runs with what they cost, by path."""
    monkeypatch.chdir(tmp_path)
    for name, encoder, modulated in (("vit", "timm", 0.8), ("clip", "open_clip", 0.7)):
        folder = tmp_path / "runs" / name
        (folder / "eval").mkdir(parents=True)
        (folder / "eval" / "summary.json").write_text(json.dumps(summary(encoder, modulated)))
        cost = {"parameters": {"encoder": 1_234_567}, "seconds_per_step": 0.321, "device": "cpu", "threads": 2}
        (folder / "cost.json").write_text(json.dumps(cost))
    return ["runs/vit", "runs/clip"]


def test_every_run_has_a_line_with_what_it_answers_and_costs(two, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["compare", "--encoders", *two, "--write", "table.md"]) == 0
    written = (tmp_path / "table.md").read_text()
    for text in (capsys.readouterr().out, written):
        for cell in ("open_clip", "1.23 M", "0.32", "70.0 [65.0, 75.0]", "+60.0 [+55.0, +65.0]", "cpu, 2 threads"):
            assert cell in text
    assert len([line for line in written.splitlines() if line.startswith("|")]) == 4


def test_a_run_that_has_not_ended_is_named(two, tmp_path, capsys):
    (tmp_path / "runs/clip/cost.json").unlink()
    assert run(["compare", "--encoders", *two]) == 1
    assert "runs/clip/cost.json cannot be read" in capsys.readouterr().err


def test_flags_that_exclude_each_other_are_refused(two, capsys):
    assert run(["compare", "--encoders", "--stages", *two]) == 2
    assert "--stages cannot be combined with --encoders or --write" in capsys.readouterr().err
