"""The learning rate over the steps, computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from vilavt_toolkit.training.schedule import learning_rate_factor


def schedule(name: str = "linear", warmup: int = 0) -> SimpleNamespace:
    return SimpleNamespace(schedule=name, warmup_steps=warmup)


def test_warm_up_rises_in_equal_steps_to_the_whole_rate():
    assert [learning_rate_factor(schedule(warmup=4), step, 12) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedule_runs_from_the_end_of_warm_up_to_the_last_step(name, rates, warmup):
    found = [learning_rate_factor(schedule(name, warmup), warmup + step, warmup + 4) for step in range(5)]
    assert found == pytest.approx(rates, abs=1e-12)


def test_a_run_that_is_all_warm_up_has_a_rate_after_it():
    assert learning_rate_factor(schedule(warmup=4), 4, 4) == 1.0
