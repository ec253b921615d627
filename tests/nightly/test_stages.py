"""Claims about the second training stage once `make nightly` has run both on two tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.evaluation import compare
from vilavt_toolkit.evaluation import compare_stages as stages
from vilavt_toolkit.evaluation.statistics import paired_difference

RUNS = Path(__file__).parents[2] / "runs"

pytestmark = pytest.mark.nightly


def answered(name):
    """The first run without and with the tool, and its `-rl`, all of the recipe as it is now."""
    try:
        (found,) = compare.read_summaries([RUNS / name])
        arms = stages.read_stage_items([RUNS / name, RUNS / f"{name}-rl"])
    except RunError as error:
        pytest.fail(f"{error} `make nightly` does all of it.")
    recipe = load_recipe(name)
    for key in ("model", "task", "train", "rl"):
        assert found.summary["recipe"][key] == recipe.resolved[key], f"the run is of another recipe: {key} differs"
    return arms


def difference(later, first):
    """The interval of a paired difference on all items, in points."""
    scores = [[run.items[i]["score"] for i in first.items] for run in (later, first)]
    found = paired_difference(*scores, list(first.items))
    return 100 * found.mean, 100 * found.low


def test_reinforcement_unlearns_needless_zooms_and_keeps_what_was_learned():
    _, supervised, reinforced = answered("quickstart")
    assert reinforced.estimate_needless_zooms().mean <= supervised.estimate_needless_zooms().mean / 2
    assert difference(reinforced, supervised)[0] >= -2


def test_all_families_answer_better_with_the_tool_than_without():
    single, supervised, reinforced = answered("digit_scenes")
    assert difference(supervised, single)[1] > 0
    assert difference(reinforced, single)[1] > 0
