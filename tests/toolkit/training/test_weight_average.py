"""The mean of trained weights: as by hand, saved, validated, without steps left out, resumed to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vilavt_toolkit.checkpoints.loading import load
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RecipeErrors
from vilavt_toolkit.training.supervised import validation
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.weight_average import NEWEST_PREFIX, WeightAverage

EMA = ["train.ema=0.75", "train.freeze=[encoder]", "train.checkpoint_every=1", "train.keep_checkpoints=9"]


def train(recipe: Path, run: Path, *overrides: str, resume: bool = False) -> Path:
    return run_supervised(load_recipe(recipe, [f"run={run}", *overrides]), resume)


def saved(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def newest(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The newest weights in a step's training state, by name."""
    state = saved(run, step, "resume")
    return {name.removeprefix(NEWEST_PREFIX): value for name, value in state.items() if name.startswith(NEWEST_PREFIX)}


@pytest.fixture(scope="module")
def averaged(_tiny_folder, tmp_path_factory) -> Path:
    """Four steps with a mean, validated at the last, all saved; tests only read it."""
    validated = ["train.validate_every=4", "train.validate_samples=5", "train.validate_dialogues=0"]
    run = tmp_path_factory.mktemp("averaged") / "run"
    return train(_tiny_folder / "tiny.yaml", run, *EMA, "task.val_items=6", *validated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_updates_are_those_by_hand_in_float32(dtype):
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
    average = WeightAverage([("weight", weight)], 0.9)
    expected = [1.0, -2.0]
    for values in ([1.0078125, 4.0], [0.5, 0.0], [2.0, 1.0]):
        weight.data = torch.tensor(values, dtype=dtype)
        average.update()
        expected = [0.9 * mean + 0.1 * value for mean, value in zip(expected, values, strict=True)]
    with average.in_use():
        assert weight.dtype == dtype and torch.equal(weight, torch.tensor(expected).to(dtype))
    assert weight.tolist() == [2.0, 1.0]


def test_a_checkpoint_holds_the_mean_and_its_training_state_the_newest_weights(averaged):
    learned = newest(averaged, 4)
    assert learned and not any(name.startswith("vision.backbone.") for name in learned)
    for step in (2, 3, 4):
        before, now, weights = (
            saved(averaged, step - 1, "model"),
            saved(averaged, step, "model"),
            newest(averaged, step),
        )
        for name, value in now.items():
            expected = 0.75 * before[name] + 0.25 * weights[name] if name in weights else before[name]
            assert torch.allclose(value, expected, rtol=1e-6, atol=1e-8), name
        assert any(not torch.equal(now[name], value) for name, value in weights.items())
    loaded = load(averaged).state_dict()
    assert all(torch.equal(loaded[name], now[name]) for name in learned)


def test_the_newest_weights_are_those_of_a_run_without_a_mean(averaged, tiny_recipe, tmp_path):
    plain = train(tiny_recipe, tmp_path / "plain", "train.freeze=[encoder]", "task.val_items=6")
    expected = saved(plain, 4, "model")
    assert all(torch.equal(value, expected[name]) for name, value in newest(averaged, 4).items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(tiny_recipe, tmp_path, precision):
    settings = [*EMA, f"train.precision={precision}"]
    whole = train(tiny_recipe, tmp_path / "whole", *settings)
    stopped = shutil.copytree(whole, tmp_path / "stopped")
    for step in (3, 4):
        shutil.rmtree(stopped / "checkpoints" / f"step-{step:08d}")
    train(tiny_recipe, stopped, *settings, resume=True)
    for name in ("model", "resume"):
        found, expected = saved(stopped, 4, name), saved(whole, 4, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_training_goes_on_from_the_newest_weights_where_the_recipe_has_no_mean_any_more(
    averaged, tiny_recipe, tmp_path
):
    run = shutil.copytree(averaged, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / f"step-{4:08d}")
    recipe = load_recipe(tiny_recipe, [f"run={run}", *EMA, "task.val_items=6", "train.ema=null"])
    run_supervised(recipe, resume=True, allow_changes=True)
    assert not newest(run, 4)
    found, expected = saved(run, 4, "model"), newest(averaged, 4)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_validation_measures_the_mean_and_leaves_the_newest_weights(averaged, tiny_recipe, tmp_path, monkeypatch):
    seen, score = [], validation.score_targets

    def scored(model, batch):
        seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return score(model, batch)

    monkeypatch.setattr(validation, "score_targets", scored)
    validated = ["train.validate_every=2", "train.validate_samples=1", "train.validate_dialogues=0"]
    run = train(tiny_recipe, tmp_path / "run", *EMA, "task.val_items=6", *validated)
    means = saved(run, 2, "model")
    assert len(seen) == 2 and all(torch.equal(means[name], seen[0][name]) for name in newest(run, 2))
    assert all(torch.equal(value, newest(averaged, 4)[name]) for name, value in newest(run, 4).items())


def test_a_step_that_is_left_out_changes_no_mean(tiny_recipe, tmp_path, monkeypatch):
    begun = SupervisedModule.begin_step

    def overflowing(self):
        optimizer = begun(self)
        if self.step == 2:
            weight = next(self.model.projector.parameters())
            handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float("inf"))
        return optimizer

    monkeypatch.setattr(SupervisedModule, "begin_step", overflowing)
    run = train(tiny_recipe, tmp_path / "run", *EMA)
    two, three, four = (saved(run, step, "model") for step in (2, 3, 4))
    assert all(torch.equal(three[name], value) for name, value in two.items())
    assert any(not torch.equal(four[name], value) for name, value in three.items())


def test_a_mean_that_cannot_be_is_refused(tiny_recipe):
    with pytest.raises(RecipeErrors, match="between 0 and 1"):
        load_recipe(tiny_recipe, ["train.ema=1"])
