"""Claims about stopping policies once `make stopping` has put them side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CURVE = Path(__file__).parents[2] / "runs" / "stopping" / "curve.json"

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def points():
    if not CURVE.is_file():
        pytest.fail(f"{CURVE} is missing. `make stopping` writes it.")
    return {(point["policy"], point["setting"]): point for point in json.loads(CURVE.read_text())["points"]}


@pytest.mark.parametrize("policy", ["confidence", "learned_halt"])
def test_knowing_when_to_stop_saves_looks_and_no_answer(points, policy):
    alone, stopped = points["model_decides", ""], points[policy, "threshold 0.3"]
    assert stopped["spent"]["patches"] < alone["spent"]["patches"]
    assert stopped["accuracy"]["mean"] >= alone["accuracy"]["low"]


def test_a_budget_is_never_exceeded_on_average(points):
    for setting in (16, 32, 48, 64):
        assert points["budget", f"patches {setting}"]["spent"]["patches"] <= setting
