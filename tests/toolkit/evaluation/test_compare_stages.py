"""Training stages side by side: accuracy, needless zooms, and paired differences on the same items."""

from __future__ import annotations

import json

import pytest

from vilavt_toolkit.cli.app import run
from vilavt_toolkit.errors import RunError, UsageError
from vilavt_toolkit.evaluation import compare_stages as stages


def evaluated(folder, scores, calls, arms=("single_pass", "modulated"), first=0):
    """A run whose items alternate between questions that need a zoom and ones that do not."""
    lines = [
        {
            "arm": arm,
            "id": f"item/{first + index}",
            "score": score,
            "calls": call if arm == "modulated" else 0,
            "tags": {"needs_zoom": index % 2 == 0},
        }
        for arm in arms
        for index, (score, call) in enumerate(zip(scores, calls, strict=True))
    ]
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_stage_shows_its_accuracy_and_the_zooms_it_spent_for_nothing(tmp_path, capsys):
    before = evaluated(tmp_path / "sft", [1, 1, 0, 1] * 5, [1, 1, 1, 0] * 5)
    after = evaluated(tmp_path / "rl", [1, 1, 1, 1] * 5, [1, 0, 1, 0] * 5)
    single, first, second = stages.read_stage_items([before, after])
    assert (single.arm, first.arm, second.arm) == ("single_pass", "modulated", "modulated")
    assert (first.estimate_accuracy(True).mean, first.estimate_accuracy(False).mean) == (0.5, 1.0)
    assert (first.estimate_needless_zooms().mean, second.estimate_needless_zooms().mean) == (0.5, 0.0)
    (line,) = stages.format_stage_differences([single, first, second])
    assert line.startswith(f"{after} - {before}, all items: +25.0 points [")
    assert run(["compare", "--stages", str(before), str(after)]) == 0
    assert "needless zooms" in " ".join(capsys.readouterr().out.split())


def test_runs_that_were_asked_other_items_are_refused(tmp_path):
    runs = [evaluated(tmp_path / str(first), [1, 0], [0, 0], first=first) for first in (0, 5)]
    with pytest.raises(UsageError, match="asked different items"):
        stages.read_stage_items(runs)


@pytest.mark.parametrize(("arms", "words"), [((), "vilavt eval"), (("modulated",), "the arm 'single_pass'")])
def test_a_run_without_the_evaluation_says_what_to_do(tmp_path, arms, words):
    folder = tmp_path / "run"
    if arms:
        evaluated(folder, [1], [0], arms)
    with pytest.raises(RunError, match=words):
        stages.read_stage_items([folder])
