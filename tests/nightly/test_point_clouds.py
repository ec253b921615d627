"""Claims about clouds once `make point-clouds` has trained and evaluated the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.renamed_keys import rename_old_keys

RUN = Path(__file__).parents[2] / "runs" / "point_clouds"

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def summary():
    """The summary of the evaluated run of the recipe as it is now."""
    file = RUN / "eval" / "summary.json"
    if not file.exists():
        pytest.fail(f"{RUN} has not been trained and evaluated; `make nightly` does both.")
    found = json.loads(file.read_text(encoding="utf-8"))
    # A run of checkpoint format 1 has the keys of its time, and is still of this recipe.
    if "format" not in found:
        found["recipe"] = rename_old_keys(found["recipe"])
    recipe = load_recipe("point_clouds")
    for key in ("model", "task", "train", "eval"):
        assert found["recipe"][key] == recipe.resolved[key], f"the run is of another recipe: {key} differs"
    assert found["step"] == recipe.recipe.train.steps, "the run has not ended"
    return found


def lower_end(summary, other, questions):
    """The lower end of the interval of `modulated` less another arm, in points."""
    (row,) = [
        row
        for row in summary["differences"]
        if (row["first"], row["second"], row["subset"]) == ("modulated", other, questions)
    ]
    return 100 * row["low"]


def test_it_reads_marks_that_it_zooms_into_far_better_than_it_could_without_the_tool(summary):
    assert lower_end(summary, "single_pass", "needs a zoom") > 25


def test_other_inquiries_cost_something(summary):
    assert lower_end(summary, "shuffled", "needs a zoom") > 0


def test_it_can_be_asked_about_the_cloud_that_was_written_beside_the_example(summary):
    import vilavt_toolkit as vt

    (scene,) = (RUN / "eval").glob("scene.*")
    assert vt.ask(scene, "what shape is the red object?", model=vt.load(RUN)).text
