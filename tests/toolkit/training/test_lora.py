"""A run with adapters: it trains, resumes, is loaded merged, starts other stages, and goes out without adapters."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vilavt_toolkit.checkpoints.exporting import export
from vilavt_toolkit.checkpoints.loading import build, load, load_checkpoint_model
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.cli.app import run as command
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import BadConfig, RunError
from vilavt_toolkit.models.adapters import is_adapter, list_adapted_layers, merge_adapters
from vilavt_toolkit.models.weight_names import part_of_weight
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.trainable import trainable_parameters

LORA = "train.lora={rank: 2, dropout: 0.1, targets: [language_model, encoder]}"
SMALL = ("train.batch_size=4", "train.optimizer.lr=1e-2", "train.checkpoint_every=2")


def run_of(recipe: Path, run: Path, *overrides: str, **options) -> Path:
    return run_supervised(load_recipe(recipe, [f"run={run}", *SMALL, *overrides]), **options)


@pytest.fixture(scope="module")
def lora_run(_tiny_folder, tmp_path_factory):
    """A run of three steps with adapters on encoder and language model."""
    run = tmp_path_factory.mktemp("lora") / "run"
    return run_of(_tiny_folder / "tiny.yaml", run, "train.steps=3", LORA)


@pytest.fixture(scope="module")
def recipe(_tiny_folder):
    return _tiny_folder / "tiny.yaml"


class Watched(SupervisedModule):
    """Keeps the weights of which every gradient was zero, or which had none, in each step."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.without: list[set[str]] = []

    def on_before_optimizer_step(self, optimizer):
        self.without.append(
            {
                name
                for name, weight in trainable_parameters(self.model)
                if weight.grad is None or not weight.grad.abs().max() > 0
            }
        )
        super().on_before_optimizer_step(optimizer)


def test_every_adapter_and_every_trained_weight_gets_a_gradient_after_a_step(recipe, tmp_path, monkeypatch):
    made = []

    class Kept(Watched):
        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **settings)
            made.append(self)

    monkeypatch.setattr("vilavt_toolkit.training.supervised.run.SupervisedModule", Kept)
    targets = "train.lora={rank: 2, targets: [language_model, encoder, projector]}"
    run_of(recipe, tmp_path / "run", "train.steps=3", targets, "train.freeze_new=true", "train.batch_size=8")
    (module,) = made
    # B begins at zero, so that A gets no gradient in the first step.
    adapters = {name for name, _ in trainable_parameters(module.model) if is_adapter(name)}
    assert {name for name in adapters if ".lora_A." in name} <= module.without[0]
    assert not any(".lora_B." in name for name in module.without[0])
    assert not module.without[2]
    parts = part_of_weight(module.model)
    kinds = {parts[id(weight)] for name, weight in module.model.named_parameters() if is_adapter(name)}
    assert kinds == {"language_model", "encoder", "projector"}


def test_base_weights_of_adapted_parts_stay_and_other_parts_train_in_full(recipe, lora_run):
    saved = load_file(find_checkpoint(lora_run) / "model.safetensors")
    before = build(recipe, [*SMALL]).state_dict()
    for name, value in before.items():
        layer, _, kind = name.rpartition(".")
        now = saved.get(name, saved.get(f"{layer}.base_layer.{kind}"))
        if name.startswith(("language_model.", "vision.backbone.")):
            assert now is None or torch.equal(now, value), name
    learnt = [name for name in before if name in saved and not torch.equal(saved[name], before[name])]
    assert any(name.startswith("projector.") for name in learnt)
    assert any(name.startswith("vision.modulators.") for name in learnt)
    assert all(saved[name].abs().max() > 0 for name in saved if ".lora_B." in name)


def test_it_is_loaded_and_exported_merged(recipe, lora_run, tmp_path):
    merged, resumed = (
        load(lora_run),
        load_checkpoint_model(recipe_of(recipe, lora_run), find_checkpoint(lora_run), True),
    )
    assert merged.adapters is None and not list_adapted_layers(merged)
    assert resumed.adapters is not None and resumed.adapters.rank == 2 and list_adapted_layers(resumed)
    merge_adapters(resumed)
    assert resumed.state_dict().keys() == merged.state_dict().keys() == build(recipe).state_dict().keys()
    for name, value in merged.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    out = export(lora_run, tmp_path / "out", "native")
    assert "adapters" not in json.loads((out / "checkpoint.json").read_text())
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in load(out).state_dict().items())


def recipe_of(recipe, run):
    return load_recipe(recipe, [f"run={run}", *SMALL, LORA, "train.steps=3"])


def test_it_resumes_bit_by_bit(recipe, tmp_path, lora_run):
    stopped = run_of(recipe, tmp_path / "stopped", "train.steps=3", LORA)
    newest = sorted((stopped / "checkpoints").iterdir())
    assert [each.name for each in newest] == ["step-00000002", "step-00000003"]
    shutil.rmtree(newest[-1])
    run_of(recipe, stopped, "train.steps=3", LORA, resume=True)
    one, other = (load_file(find_checkpoint(run) / "model.safetensors") for run in (lora_run, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_not_resumed_with_other_adapters(recipe, lora_run, tmp_path):
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    for other in (LORA.replace("rank: 2", "rank: 3"), "train.lora=null"):
        with pytest.raises(RunError, match=r"train\.lora"):
            run_of(recipe, run, "train.steps=4", other, resume=True)
        with pytest.raises(RunError, match=r"adapters of other settings\. Resume with the same train\.lora"):
            run_of(recipe, run, "train.steps=4", other, resume=True, allow_changes=True)


def test_another_stage_starts_from_the_merged_weights_with_or_without_adapters(recipe, lora_run, tmp_path):
    merged = load(lora_run).state_dict()
    start = f"train.init_from={lora_run}"
    plain = load_checkpoint_model(recipe_of(recipe, lora_run), find_checkpoint(lora_run))
    assert all(torch.equal(value, merged[name]) for name, value in plain.state_dict().items())
    full = run_of(recipe, tmp_path / "full", "train.steps=1", start)
    assert not any(is_adapter(name) for name in load_file(find_checkpoint(full) / "model.safetensors"))
    again = run_of(recipe, tmp_path / "again", "train.steps=1", start, "train.lora={targets: [modulator]}")
    saved = load_file(find_checkpoint(again) / "model.safetensors")
    assert {name.split(".")[1] for name in saved if is_adapter(name)} == {"modulators"}
    # The first adapters are in the weights, which the second run trains from there.
    bases = [name for name in saved if ".base_layer." in name]
    assert bases and all(torch.equal(saved[name], merged[name.replace(".base_layer", "")]) for name in bases)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.lora={targets: [language_model.*q_prj]}",
            r"train\.lora.targets matches no linear layer\. Nearest: .*q_proj",
        ),
        ("train.lora={targets: [language_model, '*q_proj']}", "both match .*q_proj"),
        ("train.lora={targets: []}", "targets is empty"),
        ("train.lora={targets: [projector]}", r"projector\..* is new in this stage"),
        ("train.frozen_dtype=bfloat16", "needs train.precision bf16-mixed"),
    ],
)
def test_check_and_train_refuse_what_cannot_be(recipe, tmp_path, capsys, override, words):
    assert command(["check", str(recipe), override]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(words, told), told
    assert command(["train", str(recipe), f"run={tmp_path / 'run'}", override]) == 2
    assert re.search(words, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_weight_of_an_adapted_layer_is_not_unfrozen(recipe, tmp_path):
    with pytest.raises(BadConfig, match="which has an adapter"):
        run_of(recipe, tmp_path / "run", LORA, "train.unfreeze=[language_model]")
    norms = run_of(recipe, tmp_path / "norms", "train.steps=1", LORA, "train.unfreeze=['language_model.*norm*']")
    before, after = build(recipe).state_dict(), load(norms).state_dict()
    changed = [name for name in before if "norm" in name and not torch.equal(before[name], after[name])]
    assert any(name.startswith("language_model.") for name in changed)


def test_frozen_weights_in_bfloat16_train_resume_and_are_loaded(recipe, tmp_path):
    half = [LORA, "train.precision=bf16-mixed", "train.frozen_dtype=bfloat16"]
    run = run_of(recipe, tmp_path / "run", "train.steps=2", *half)
    saved = load_file(find_checkpoint(run) / "model.safetensors")
    for name, value in saved.items():
        is_frozen = name.startswith(("language_model.", "vision.backbone.")) and not is_adapter(name)
        if value.is_floating_point() and "running" not in name:
            assert value.dtype == (torch.bfloat16 if is_frozen else torch.float32), name
    run_of(recipe, run, "train.steps=4", *half, resume=True)
    assert {weight.dtype for weight in load(run).parameters()} == {torch.bfloat16}
    out = export(run, tmp_path / "out", "native")
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.float32}


def test_reinforcement_trains_adapters_over_the_merged_run_and_resumes(rl_recipe, tmp_path):
    first = run_supervised(load_recipe(rl_recipe, [f"run={tmp_path / 'sft'}", "train.steps=1", *SMALL, LORA]))
    lora = "rl.lora={rank: 2, targets: [language_model]}"
    settings = [f"run={first}", f"rl.run={tmp_path / 'rl'}", *SMALL, LORA, lora, "rl.checkpoint_every=1"]
    run = run_reinforcement(load_recipe(rl_recipe, [*settings, "rl.steps=1"]))
    saved, merged = load_file(find_checkpoint(run) / "model.safetensors"), load(first).state_dict()
    for name, value in saved.items():
        if name.startswith("language_model.") and not is_adapter(name):
            assert torch.equal(value, merged[name.replace(".base_layer", "")]), name
    assert any(is_adapter(name) for name in saved)
    run_reinforcement(load_recipe(rl_recipe, [*settings, "rl.steps=2"]), resume=True)
    assert find_checkpoint(run).name == "step-00000004" and load(run).adapters is None
