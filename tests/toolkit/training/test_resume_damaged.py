"""A damaged training state is refused in a sentence, and the run stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.supervised.run import run_supervised

DATA = {
    "a list": lambda data: [1],
    "no trained shapes": lambda data: {**data, "trained": 3},
    "no random numbers": lambda data: {name: value for name, value in data.items() if name != "random.python"},
    "texts as random numbers": lambda data: {**data, "random.python": [3, ["x"] * 625, None]},
    "numpy without an algorithm": lambda data: {**data, "random.numpy": [1, 2, 3, 4, 5]},
    "a text as count": lambda data: {**data, "skipped": "many"},
    "an infinite count": lambda data: {**data, "skipped": float("inf")},
    "soundness of another kind": lambda data: {**data, "soundness": [1]},
    "another list of tensors": lambda data: {**data, "tensors": {"a": ["float32", 3]}},
    "an optimizer of texts": lambda data: {**data, "optimizer.x.y": 1},
}
TENSORS = {
    "moments of another shape": lambda name, value: value.reshape(-1)[:1] if "exp_avg" in name else value,
    "moments in integers": lambda name, value: value.int() if "exp_avg" in name else value,
    "a random state in floats": lambda name, value: value.float() if name == "random.torch" else value,
}


def refused(recipe: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"Use another checkpoint|Remove this checkpoint|Resume with the same") as error:
        run_supervised(load_recipe(recipe, [f"run={run}", "train.steps=5"]), resume=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize("damage", DATA)
def test_data_of_the_wrong_types_is_refused(tiny_recipe, run, damage):
    file = run / "checkpoints" / "step-00000004" / "resume.json"
    file.write_text(json.dumps(DATA[damage](json.loads(file.read_text()))))
    refused(tiny_recipe, run)


@pytest.mark.parametrize("damage", TENSORS)
def test_tensors_that_were_not_written_so_are_refused(tiny_recipe, run, damage):
    file = run / "checkpoints" / "step-00000004" / "resume.safetensors"
    save_file({name: TENSORS[damage](name, value).contiguous() for name, value in load_file(file).items()}, file)
    assert torch.is_tensor(load_file(file)["random.torch"])
    refused(tiny_recipe, run)
