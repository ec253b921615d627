"""A trained run evaluated under other stopping policies than its own: by an override, or by a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from vilavt_toolkit.checkpoints.loading import load
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RecipeErrors, RunError, UsageError
from vilavt_toolkit.evaluation.run import evaluate_recipe, evaluate_run
from vilavt_toolkit.training.supervised.run import run_supervised

QUIET = Console(quiet=True)
FEW = ["eval.items=3", "eval.arms=[modulated]"]
BUDGET = "model.stopping=[model_decides, {name: budget, tokens: 1}]"
LEARNED = "model.stopping=[model_decides, {name: learned_halt, threshold: 0}]"


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of the trained run, to be written into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def reasons(folder: Path) -> set[str]:
    rows = [json.loads(line) for line in (folder / "eval" / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    return {row["why"] for row in rows}


def test_an_evaluation_may_say_when_the_model_stops(run):
    before = load(run).state_dict()
    summary = evaluate_run(run, [*FEW, BUDGET], QUIET)
    (why,) = {reason.partition(":")[0] for reason in reasons(run)}
    assert why == "the budget of 1 tokens does not allow more"
    assert summary["recipe"]["model"]["stopping"][1] == {"name": "budget"} | {
        "patches": None, "tokens": 1, "flops": None, "seconds": None
    }  # fmt: skip
    assert all(value.equal(before[name]) for name, value in load(run).state_dict().items())


def test_what_is_wrong_with_other_policies_is_said_as_of_a_recipe(run):
    with pytest.raises(RecipeErrors, match=r"model\.stopping\[0\]\.name: no stopping policy named 'budgt'"):
        evaluate_run(run, ["model.stopping=[budgt]"], QUIET)
    with pytest.raises(UsageError, match="cannot change after training"):
        evaluate_run(run, ["model.stoppings=3"], QUIET)


def test_a_head_that_was_not_trained_stops_nothing(run, tiny_recipe, tmp_path):
    with pytest.raises(RunError, match=rf"holds no weights stopping\.1\.head.* train\.init_from={run}"):
        evaluate_run(run, [LEARNED], QUIET)
    recipe = load_recipe(tiny_recipe, [f"run={tmp_path / 'new'}", f"train.init_from={run}", LEARNED])
    with pytest.raises(UsageError, match="must learn first: vilavt train"):
        evaluate_recipe(recipe, QUIET)
    assert not (tmp_path / "new").exists() and not (run / "eval").exists()


def test_a_trained_heads_threshold_may_be_changed(tiny_recipe, run, tmp_path):
    settings = [f"run={tmp_path / 'head'}", f"train.init_from={run}", LEARNED, "train.steps=1"]
    head = run_supervised(load_recipe(tiny_recipe, settings))
    evaluate_run(head, FEW, QUIET)
    assert all(reason.startswith("learned to halt here") for reason in reasons(head))
    evaluate_run(head, [*FEW, "model.stopping[1].threshold=1"], QUIET)
    assert not any(reason.startswith("learned to halt here") for reason in reasons(head))


def test_a_recipe_is_evaluated_untrained_as_what_it_begins_with(run, tiny_recipe, tmp_path, caplog):
    settings = [f"run={tmp_path / 'new'}", f"train.init_from={run}", BUDGET, *FEW]
    summary = evaluate_recipe(load_recipe(tiny_recipe, settings), QUIET)
    assert all("budget of 1 tokens" in reason for reason in reasons(tmp_path / "new"))
    assert Path(summary["checkpoint"]).is_relative_to(run) and summary["step"] == 4
    assert "is evaluated untrained, with the weights of" in caplog.text
    assert not (run / "eval").exists()
    with pytest.raises(UsageError, match="names nothing to evaluate"):
        evaluate_recipe(load_recipe(tiny_recipe), QUIET)
    with pytest.raises(UsageError, match=rf"has been trained. Evaluate its run: vilavt eval {run}"):
        evaluate_recipe(load_recipe(tiny_recipe, [f"run={run}"]), QUIET)
    shutil.rmtree(tmp_path / "new")
    run_supervised(load_recipe(tiny_recipe, settings))
    with pytest.raises(UsageError, match=r"has been trained. Evaluate its run"):
        evaluate_recipe(load_recipe(tiny_recipe, settings), QUIET)
