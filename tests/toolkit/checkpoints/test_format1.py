"""What the toolkit wrote before its settings and weights got their names of today: it loads, answers and resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.facts import FORMAT, read_step
from vilavt_toolkit.checkpoints.format1 import current_weight_name
from vilavt_toolkit.checkpoints.loading import load_checkpoint_model
from vilavt_toolkit.checkpoints.native import find_checkpoint, load_checkpoint, load_checkpoint_recipe, load_run_recipe
from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError, VilavtError

GOLDEN = Path(__file__).parents[2] / "golden" / "format1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A copy of the run, as a user has it who updates the toolkit."""
    return Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def project_weights(run: Path) -> dict[str, list[float]]:
    """Return the norm of every weight, and its product with a fixed vector, which tells its numbers and their order."""
    found = {}
    for name, tensor in load_file(str(find_checkpoint(run) / "model.safetensors")).items():
        values = tensor.double().flatten()
        found[name] = [float(values.norm()), float(values @ torch.arange(len(values)).double().cos())]
    return found


def test_a_saved_chat_goes_on_with_the_same_words_and_log_probabilities():
    chat = vt.Chat.load(GOLDEN / "chat", vt.load(GOLDEN / "run", device="cpu"))
    chat.ask(EXPECTED["question"])
    assert chat.trajectory.ids == EXPECTED["ids"]
    assert chat.trajectory.logprobs == pytest.approx(EXPECTED["logprobs"], abs=1e-5)


def test_training_resumes_to_the_same_weights_and_writes_the_new_format(old_run, one_thread):
    command = ["train", str(old_run / "recipe.yaml"), f"run={old_run}", "train.steps=6", "--resume"]
    assert cli.run(command) == 0
    # To rounding, not to the bit: a loss or an optimizer may be computed in another order than then. Without the
    # optimizer's state or the random state the weights would be off by about the learning rate, 1e-3.
    expected = EXPECTED["resumed_to_step_6"]
    assert project_weights(old_run) == {
        name: pytest.approx(values, rel=1e-6, abs=1e-5) for name, values in expected.items()
    }
    newest = find_checkpoint(old_run)
    assert json.loads((newest / "checkpoint.json").read_text())["format"] == FORMAT and read_step(newest) == 6
    assert load_recipe(newest / "recipe.yaml").recipe.train.max_samples == 30, "under today's keys"
    vt.load(old_run)


@pytest.mark.parametrize("has_weights", [False, True])
def test_every_tensor_of_the_file_is_in_the_model_mapped_or_copied(has_weights):
    """Mapped into a model on the meta device, copied into one that training has built."""
    checkpoint = find_checkpoint(GOLDEN / "run")
    model, recipe = load_checkpoint(checkpoint)
    if has_weights:
        model = load_checkpoint_model(recipe, checkpoint, resume=True)
    state, stored = model.state_dict(), load_file(str(checkpoint / "model.safetensors"))
    assert len(stored) == 72
    for name, value in stored.items():
        assert torch.equal(state[current_weight_name(name)], value), name


def test_weights_are_read_in_another_type(old_run):
    model = vt.load(old_run, device="cpu", dtype="bfloat16")
    stored = load_file(str(find_checkpoint(old_run) / "model.safetensors"))
    name = "encoder.encoder.model.norm.bias"
    assert torch.equal(model.state_dict()["vision.backbone.model.norm.bias"], stored[name].to(torch.bfloat16))


def test_the_weights_that_a_reinforcement_run_kept_without_a_format_are_read_too(old_run):
    """`rl.kl` of a run that began from a checkpoint of others wrote its reference without checkpoint.json."""
    checkpoint = find_checkpoint(old_run)
    recipe = load_checkpoint_recipe(checkpoint)
    (checkpoint / "checkpoint.json").unlink()
    load_checkpoint_model(recipe, checkpoint)


def test_an_error_names_tensors_as_the_model_has_them(old_run):
    recipe = load_run_recipe(old_run / "recipe.yaml", ["model.projector.hidden_dim=48"])
    with pytest.raises(RunError, match=r"mis-shaped: projector\.net\.1\.\w+ \[32") as raised:
        load_checkpoint_model(recipe, find_checkpoint(old_run))
    assert "encoder.encoder" not in str(raised.value)


def test_a_recipe_with_earlier_keys_is_read_in_a_run_and_nowhere_else(old_run, tmp_path):
    assert load_run_recipe(old_run / "recipe.yaml").recipe.train.preprocess == "ahead"
    mine = tmp_path / "mine.yaml"
    shutil.copy(old_run / "recipe.yaml", mine)
    with pytest.raises(VilavtError, match="max_samples"):
        load_run_recipe(mine)
    # A run that has saved nothing yet has nothing to resume: its recipe is one as any other.
    shutil.rmtree(old_run / "checkpoints")
    with pytest.raises(VilavtError, match="max_samples"):
        load_run_recipe(old_run / "recipe.yaml")


def test_overrides_are_written_with_todays_keys(old_run):
    assert load_run_recipe(old_run / "recipe.yaml", ["train.max_samples=7"]).recipe.train.max_samples == 7


def test_a_run_is_evaluated_and_compared_with_one_of_today(old_run, tiny_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # however long the paths of temporary folders are, no column is cut
    settings = ["eval.items=2", "task.test_items=4"]
    assert cli.run(["eval", str(old_run), *settings]) == 0
    new = tmp_path / "new"
    shutil.copytree(old_run, new)
    # What the earlier toolkit wrote: its keys, and no format.
    file = old_run / "eval" / "summary.json"
    summary = json.loads(file.read_text())
    del summary["format"]
    summary["recipe"]["task"]["steps"] = summary["recipe"]["task"].pop("box_units")
    file.write_text(json.dumps(summary))
    assert cli.run(["compare", str(old_run), str(new)]) == 0
    assert "film" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder.encoder.model.norm.bias", "vision.backbone.model.norm.bias"),
        ("encoder.modulators.0.0.nets.norm1.0.bias", "vision.modulators.0.0.nets.norm1.0.bias"),
        ("encoder.inquiry_encoder.mix.weight", "vision.inquiry_encoder.mix.weight"),
        ("projector.encoder.weight", "projector.encoder.weight"),
        ("encoders.weight", "encoders.weight"),
    ],
)
def test_only_the_names_of_the_vision_encoder_changed(old, new):
    assert current_weight_name(old) == new
