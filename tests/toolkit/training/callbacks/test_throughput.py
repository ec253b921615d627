"""Speed and memory in the log: between nothing and everything, and of the steps since the last logged one."""

from __future__ import annotations

import csv

import pytest

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.training.supervised.run import run_supervised

SPEED = ["tokens_per_second", "patches_per_second", "data_share", "teraflops", "mfu"]


def read_log(run):
    with (run / "logs" / "csv" / "from-step-00000000" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_speed_and_memory_are_logged(tiny_recipe, tmp_path):
    settings = [f"run={tmp_path / 'run'}", "train.trackers=[csv]", "train.log_every=2", "train.peak_tflops=0.5"]
    first, second = read_log(run_supervised(load_recipe(tiny_recipe, settings)))
    for row in (first, second):
        values = {name: float(row[f"speed/{name}"]) for name in SPEED}
        assert values["mfu"] == pytest.approx(values["teraflops"] / 0.5)
        assert values["mfu"] > 0 and 0 < values["data_share"] < 1 and values["tokens_per_second"] > 0
        assert 0.05 < float(row["memory/peak_gib"]) < 100
    # Both windows hold the same number of samples of alike lengths, so their ratio of sizes is about the same.
    ratios = [float(row["speed/patches_per_second"]) / float(row["speed/tokens_per_second"]) for row in (first, second)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.5)
