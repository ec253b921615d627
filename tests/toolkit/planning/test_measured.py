"""Rates of this machine: how they give times, that they are kept, and that measuring finds them all."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.planning import calibration
from vilavt_toolkit.planning.measured import MeasuredRates, choose_rates, interpolate, load_rates, save_rates
from vilavt_toolkit.planning.rates import Work, WorkKind
from vilavt_toolkit.planning.recording import StepRecorder
from vilavt_toolkit.planning.shapes import run_on_shapes

CURVES = {
    "matrix float32": ((10.0, 1e9), (1000.0, 1e11)),
    "matrix bfloat16": ((10.0, 4e9), (1000.0, 4e11)),
    "causal attention float32": ((32.0, 2e9),),
    "simple float32": ((1e3, 1e9), (1e9, 1e8)),
}


def made(**options: object) -> MeasuredRates:
    given = {"machine": "mine", "memory": 1 << 30, "threads": 2, "measured": "2026-11-30", "versions": {"torch": "3"}}
    return MeasuredRates(**{**given, "start_seconds": 1e-3, "curves": CURVES, **options})


def test_a_rate_lies_between_those_of_the_nearest_sizes_and_stays_beyond_the_ends():
    curve = CURVES["matrix float32"]
    assert interpolate(curve, 10) == 1e9 and interpolate(curve, 1000) == pytest.approx(1e11)
    # Half way on both axes of logarithms.
    assert interpolate(curve, 100) == pytest.approx(1e10)
    assert interpolate(curve, 1) == 1e9 and interpolate(curve, 10**6) == 1e11


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work("matrix", 10**9, 0, "float32", 10), 1.0),
        (Work("matrix", 10**9, 0, "float16", 10), 0.25),
        (Work("causal attention", 10**9, 0, "float32", 64), 0.5),
        # What only moves numbers is looked up by its bytes.
        (Work("simple", 0, 10**9, "int64"), 10.0),
        (Work("simple", 0, 0, "float32"), 0.0),
    ],
)
def test_an_operation_takes_its_numbers_and_its_start(work, seconds):
    assert made().seconds(work) == pytest.approx(seconds + 1e-3)
    # A GPU starts the next one meanwhile.
    assert made(is_gpu=True).seconds(work) == pytest.approx(max(seconds, 1e-3))


def test_rates_are_kept_for_the_user_and_a_plan_for_the_cpu_takes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VILAVT_CONFIG_HOME", str(tmp_path / "settings"))
    assert load_rates() is None and choose_rates(None, is_cpu=True).name == "h200"
    with pytest.raises(UsageError, match="vilavt plan --calibrate"):
        choose_rates("here")
    file = save_rates(made())
    assert load_rates() == made() == choose_rates("here") == choose_rates(None, is_cpu=True)
    assert choose_rates(None).name == "h200" and choose_rates("a100", is_cpu=True).name == "a100"
    save_rates(made(is_gpu=True))
    assert choose_rates(None, is_cpu=True).name == "h200", "those of a GPU say nothing of the CPU"
    for damaged in ("[]", "{", '{"machine": "mine"}'):
        file.write_text(damaged)
        with pytest.raises(UsageError, match=f"{file} holds no rates"):
            load_rates()


def test_every_kind_of_work_is_measured(monkeypatch):
    for name, few in (("_SMALLEST", (16,)), ("_HEADS", ((64, 32),)), ("_NUMBERS", (1 << 13,)), ("_SECONDS", 0.0)):
        monkeypatch.setattr(calibration, name, few)
    rates = calibration.calibrate(torch.device("cpu"))
    for kind in get_args(WorkKind):
        for number_type in ("float32", "bfloat16"):
            assert rates.seconds(Work(kind, 10**6, 10**6, number_type, 32)) > rates.start_seconds > 0
    assert not rates.is_gpu and rates.memory > 1 << 28 and rates.versions["torch"] in rates.name


def test_each_operation_of_a_step_is_work_of_its_kind():
    seen = []

    class Noting:
        name, memory, is_gpu = "noting", 0, False

        def seconds(self, work: Work) -> float:
            seen.append(work)
            return 1.0

    recorder = StepRecorder(vocab_size=0, rates=Noting())
    with run_on_shapes(recorder):
        states = torch.empty(2, 4, 48, 24, requires_grad=True)
        mixed = torch.nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
        weight = torch.empty(8, 24)
        torch.nn.functional.silu(mixed.reshape(384, 24) @ weight.t()).sum().backward()
    found = {work.kind: work for work in seen}
    assert set(found) == {"causal attention", "causal attention backward", "matrix", "function", "simple"}
    assert found["causal attention"].size == found["causal attention backward"].size == 48 * 24
    assert found["matrix"].size == 8 and found["matrix"].operations == 2 * 384 * 24 * 8
    assert found["function"].moved in (2 * 384 * 8 * 4, 3 * 384 * 8 * 4) and not found["function"].operations
