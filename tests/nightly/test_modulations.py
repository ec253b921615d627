"""Claims about the modulations once `make modulations` has trained and evaluated each on the first task."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.evaluation import compare

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "recipes" / "modulation").glob("*.yaml"))

pytestmark = pytest.mark.nightly


@pytest.fixture(params=NAMES)
def run(request):
    """The evaluated run of a modulation's recipe, as the recipe is now."""
    try:
        (found,) = compare.read_summaries([ROOT / "runs" / "modulation" / request.param])
    except RunError as error:
        pytest.fail(f"{error} `make nightly` does both for all modulations.")
    recipe = load_recipe(f"modulation/{request.param}")
    for key in ("model", "task", "train", "eval"):
        assert found.summary["recipe"][key] == recipe.resolved[key], f"the run is of another recipe: {key} differs"
    assert found.summary["step"] == recipe.recipe.train.steps, "the run has not ended"
    return found


def difference(run, other, questions):
    """The interval of `modulated` less another arm, in points."""
    (row,) = [
        row
        for row in run.summary["differences"]
        if (row["first"], row["second"], row["subset"]) == ("modulated", other, questions)
    ]
    return 100 * row["low"], 100 * row["high"]


def test_it_reads_what_it_zooms_into_far_better_than_it_could_without_the_tool(run):
    assert difference(run, "single_pass", "needs a zoom")[0] > 20


def test_its_encoder_has_come_to_use_being_told_the_inquiry(run):
    assert difference(run, "unmodulated", "needs a zoom")[0] > 5


def test_it_uses_what_the_inquiry_says_where_the_crop_holds_several_things_to_read(run):
    assert difference(run, "shuffled", "several to read")[0] > 5
