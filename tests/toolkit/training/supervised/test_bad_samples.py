"""Images that become unreadable while training runs: left out and named up to the recipe's number, resumed exactly."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Source
from vilavt_toolkit.errors import InputError, TrainingError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.supervised.bad_samples import BadSample, BadSampleCount
from vilavt_toolkit.training.supervised.data import StepSampler
from vilavt_toolkit.training.supervised.run import run_supervised

ROW = [{"from": "human", "value": "<image>which one?"}, {"from": "gpt", "value": "the red one"}]


def test_a_sample_counts_once_and_one_too_many_is_told(caplog):
    count = BadSampleCount(2)
    count.add_samples([BadSample(4, "sample a: gone."), BadSample(4, "sample a: gone.")])
    count.add_samples([BadSample(4, "sample a: gone."), BadSample(7, "sample b: gone.")])
    assert count.to_json() == [4, 7] and len(caplog.records) == 2
    assert caplog.messages[1] == "a sample is left out (2 of at most 2): sample b: gone."
    resumed = BadSampleCount(2)
    resumed.load_json(count.to_json())
    resumed.add_samples([BadSample(7, "sample b: gone.")])
    with pytest.raises(TrainingError, match=r"^3 samples .* number 9 .*c: gone\. .*raise train\.max_bad_samples"):
        resumed.add_samples([BadSample(9, "sample c: gone.")])


@pytest.fixture
def files(tmp_path):
    """A file of eight rows with an image each; the images are checked when training starts."""
    rows = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "conversations": ROW, "images": [f"{number}.png"]})
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def damage(monkeypatch):
    """Lets images become unreadable behind the check that every run begins with."""

    def damaged(*names: str) -> None:
        opened = VisualChatModel.open_source

        def open_source(model, original) -> Source:
            path = Path(str(original))
            # As a truncated file is met: by its decoder, while the run is on.
            if path.name in names:
                path.write_bytes(path.read_bytes()[:200])
            return opened(model, original)

        monkeypatch.setattr(VisualChatModel, "open_source", open_source)

    return damaged


def train(recipe: Path, files: Path, run: Path, *overrides: str, resume: bool = False) -> Path:
    settings = [f"run={run}", f"task={{name: conversations, files: [{files}]}}", "train.batch_size=4", *overrides]
    return run_supervised(load_recipe(recipe, settings), resume)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("preprocess", ["ahead", "stream"])
def test_a_run_goes_on_without_an_image_that_became_unreadable(
    tiny_recipe, files, tmp_path, damage, caplog, workers, preprocess
):
    damage("5.png")
    settings = [f"train.workers={workers}", f"train.preprocess={preprocess}", "train.max_bad_samples=1"]
    with caplog.at_level(logging.WARNING):
        run = train(tiny_recipe, files, tmp_path / "run", *settings)
    told = [message for message in caplog.messages if "left out" in message]
    assert len(told) == 1 and "sample rows/5" in told[0] and "1 of at most 1" in told[0], "once in two epochs"
    assert load_training_state(run / "checkpoints" / "step-00000004").data["bad_samples"] == [5]
    # Wherever samples are prepared, what is learned is the same.
    plain = train(tiny_recipe, files, tmp_path / "plain", "train.max_bad_samples=3")
    assert all(torch.equal(value, weights(plain, 4)[name]) for name, value in weights(run, 4).items())
    assert all(value.isfinite().all() for value in weights(run, 4).values())


def test_the_first_one_stops_a_run_that_spares_none_and_the_step_before_is_kept(tiny_recipe, files, tmp_path, damage):
    (fifth,) = StepSampler(8, 1, 8, 3).step_indices(5)
    damage(f"{fifth}.png")
    settings = ["train.batch_size=1", "train.steps=8"]
    with pytest.raises(InputError, match=rf"sample rows/{fifth}.*{fifth}\.png"):
        train(tiny_recipe, files, tmp_path / "run", *settings)
    assert find_checkpoint(tmp_path / "run").name == "step-00000005"
    train(tiny_recipe, files, tmp_path / "run", *settings, "train.max_bad_samples=1", resume=True)
    assert find_checkpoint(tmp_path / "run").name == "step-00000008"


def test_a_resumed_run_goes_on_counting_and_ends_where_an_unbroken_one_does(tiny_recipe, files, tmp_path, damage):
    damage("1.png", "5.png")
    settings = ["train.max_bad_samples=2", "train.steps=4"]
    whole = train(tiny_recipe, files, tmp_path / "whole", *settings)
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    shutil.rmtree(broken / "checkpoints" / "step-00000004")
    train(tiny_recipe, files, broken, *settings, resume=True)
    assert all(torch.equal(value, weights(whole, 4)[name]) for name, value in weights(broken, 4).items())
    with pytest.raises(TrainingError, match=r"2 samples cannot be read, .*train\.max_bad_samples"):
        train(tiny_recipe, files, tmp_path / "few", "train.max_bad_samples=1")


def test_a_step_without_a_readable_sample_changes_nothing(tiny_recipe, files, tmp_path, damage):
    damage(*(f"{number}.png" for number in range(8)))
    settings = ["train.max_bad_samples=8", "train.checkpoint_every=1", "train.steps=2"]
    run = train(tiny_recipe, files, tmp_path / "run", *settings)
    assert all(torch.equal(value, weights(run, 2)[name]) for name, value in weights(run, 1).items())
