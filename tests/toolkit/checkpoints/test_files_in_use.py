"""Files of a checkpoint that is in use: our writers replace them by rename, and training does not depend on them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build_model, load_checkpoint_model
from vilavt_toolkit.checkpoints.native import find_checkpoint, save_checkpoint
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.training.resume import capture_state, restore_state
from vilavt_toolkit.training.trainable import build_optimizer, trainable_parameters

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def overwrite(file: Path) -> None:
    """Overwrite a file in place, with ones in place of its second half."""
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\x3f" * (file.stat().st_size - file.stat().st_size // 2))


def test_weights_that_are_trained_do_not_change_with_their_file(tiny_recipe, run, tmp_path):
    folder = find_checkpoint(run)
    own = load_checkpoint_model(load_recipe(tiny_recipe), folder, resume=True)
    weights = Path(shutil.copytree(GOLDEN / "vilavt", tmp_path / "weights"))
    shutil.copy(GOLDEN / "weights.safetensors", weights / "model.safetensors")
    recipe = load_recipe("vilavt_7b/tiny_sft", [f"model.checkpoint={weights}"])
    # In the type that they are stored in, they would be mapped.
    foreign = build_model(recipe, None, copy=True)
    before = [[weight.clone() for weight in model.parameters()] for model in (own, foreign)]
    overwrite(folder / "model.safetensors")
    overwrite(weights / "model.safetensors")
    for model, held in zip((own, foreign), before, strict=True):
        assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), held, strict=True))


def test_an_optimizer_goes_on_with_moments_that_do_not_change_with_their_file(tiny_recipe, run):
    folder = find_checkpoint(run)
    recipe = load_recipe(tiny_recipe)
    model = load_checkpoint_model(recipe, folder, resume=True)
    optimizer = build_optimizer(recipe.recipe.train.optimizer.build(), trainable_parameters(model), "train")
    state, names = load_training_state(folder), {id(weight): name for name, weight in trainable_parameters(model)}
    restore_state(state, optimizer, "train", names=names)
    before = {name: value.clone() for name, value in capture_state(optimizer).tensors.items()}
    random = state.tensors["random.torch"].clone()
    overwrite(folder / "resume.safetensors")
    after = capture_state(optimizer).tensors
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("optimizer."))
    assert torch.equal(state.tensors["random.torch"], random)


def test_a_checkpoint_that_is_written_again_leaves_the_files_of_the_old_one_as_they_were(run, tiny_model, tmp_path):
    """A second name of each file shows what a process sees that has opened or mapped it."""
    folder, kept = find_checkpoint(run), tmp_path / "kept"
    files = [path for path in run.rglob("*") if path.is_file()]
    before = {}
    for number, file in enumerate(files):
        (kept / str(number)).parent.mkdir(exist_ok=True)
        os.link(file, kept / str(number))
        before[kept / str(number)] = file.read_bytes()
    recipe = load_recipe(folder / "recipe.yaml")
    for step in (4, 5, 6):
        save_checkpoint(run, tiny_model, recipe, step, load_training_state(find_checkpoint(run)))
    assert {path: path.read_bytes() for path in before} == before
