"""The newest sound checkpoint stays when training diverges, and only then takes a third place."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vilavt_toolkit.checkpoints.native import load_checkpoint
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.training.callbacks.soundness import Soundness, measure_weights
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.supervised.run import run_supervised


def module_of(step: int = 0, start: int = 0, size: float = 0.2, loss: float | None = 2.0, comparable: bool = True):
    """What is asked of a stage: its step, its weights, and the loss of the step it has just taken."""
    model = nn.Linear(3, 2, bias=False)
    nn.init.constant_(model.weight, size)
    return SimpleNamespace(
        model=model, step=step, start_step=start, taken_loss=loss, has_comparable_loss=comparable
    )  # fmt: skip


def judged(size: float = 0.2, loss: float | None = 2.0, comparable: bool = True, begun: float = 0.2) -> int | None:
    """The sound step behind a checkpoint at step 5 of weights of a size, and a step from it of a loss."""
    soundness = Soundness()
    soundness.begin(module_of(size=begun), None)
    soundness.judge_step(module_of(1, loss=2.0))
    soundness.add_checkpoint(module_of(5, size=size))
    assert soundness.step is None, "only the next step can tell"
    soundness.judge_step(module_of(6, size=size, loss=loss, comparable=comparable))
    return soundness.step


@pytest.mark.parametrize(
    ("size", "begun", "sound"), [(1.9, 0.2, 5), (2.1, 0.2, None), (0.99, 0.0, 5), (1.1, 0.0, None)]
)
def test_sound_weights_have_not_grown_tenfold_or_are_small(size, begun, sound):
    assert judged(size=size, begun=begun) == sound


@pytest.mark.parametrize("size", [math.nan, math.inf, -math.inf, 1e30])
def test_weights_that_are_no_numbers_or_beyond_all_are_not_sound(size):
    assert judged(size=size) is None


@pytest.mark.parametrize(("loss", "sound"), [(0.1, 5), (5.0, 5), (5.01, None), (1e30, None)])
def test_a_sound_loss_is_at_most_twice_the_first_and_one_more(loss, sound):
    assert judged(loss=loss) == sound
    assert judged(loss=loss, comparable=False) == 5, "a policy's loss has no scale"


def test_a_step_that_was_left_out_judges_nothing_and_the_next_one_does():
    soundness = Soundness()
    soundness.begin(module_of(), None)
    soundness.judge_step(module_of(1))
    soundness.add_checkpoint(module_of(1))
    soundness.judge_step(module_of(2, loss=None))
    assert soundness.step is None
    soundness.judge_step(module_of(3))
    assert soundness.step == 1


def test_a_resumed_stage_keeps_its_measures_and_judges_the_checkpoint_it_resumes_from():
    soundness = Soundness()
    soundness.begin(module_of(), None)
    soundness.judge_step(module_of(1, loss=2.0))
    again = Soundness()
    again.begin(module_of(7, start=7, size=1.9), soundness.to_json())
    again.judge_step(module_of(8, loss=5.0))
    assert again.step == 7 and again.to_json() == {"step": 7, "first_size": pytest.approx(0.2), "first_loss": 2.0}


def test_the_size_of_weights_is_their_root_mean_square_in_every_type():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        module = module_of()
        module.model.to(dtype)
        with torch.no_grad():
            module.model.weight.copy_(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
        assert measure_weights(module) == pytest.approx((25 / 6) ** 0.5)


def kept(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("stage", ["train", "rl"])
def test_a_diverged_run_keeps_the_newest_sound_checkpoint_beside_the_last(rl_recipe, tiny_run, tmp_path, caplog, stage):
    train = run_supervised if stage == "train" else run_reinforcement
    common = [f"run={tmp_path / 'run'}", f"{stage}.checkpoint_every=1", f"{stage}.schedule=constant"]
    # Three optimizer steps on the rollouts of one: of diverged weights no group of rollouts teaches anything.
    common += [] if stage == "train" else ["rl.inner_epochs=3", f"rl.init_from={tiny_run}"]
    steps = (3, 6) if stage == "train" else (1, 2)
    run = train(load_recipe(rl_recipe, [*common, f"{stage}.steps={steps[0]}"]))
    assert kept(run) == ["step-00000002", "step-00000003"] and "diverged" not in caplog.text
    diverging = [f"{stage}.optimizer.lr=1000", f"{stage}.steps={steps[1]}"]
    train(load_recipe(rl_recipe, [*common, *diverging]), resume=True, allow_changes=True)
    assert kept(run) == ["step-00000003", "step-00000005", "step-00000006"]
    assert "training seems to have diverged since step 3" in caplog.text
    model, _ = load_checkpoint(run / "checkpoints" / "step-00000003")
    assert all(bool((weight.abs() < 10).all()) for weight in model.parameters())
