"""Assembling: parts agree before a weight is made, and everything that does not fit is said at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from vilavt_toolkit.cli.app import run
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS
from vilavt_toolkit.errors import RecipeErrors
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.registry import sources
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing.isolation import isolated_registries

load_builtin()


def misfits(recipe: Path, *overrides: str) -> list[str]:
    checked = load_recipe(recipe, overrides)
    with pytest.raises(RecipeErrors) as error, torch.device("meta"):
        assemble_model(checked.recipe.model, "mine.yaml")
    return [str(each) for each in error.value.errors]


def test_a_checked_recipe_builds_without_memory(tiny_recipe):
    with torch.device("meta"):
        model = assemble_model(load_recipe(tiny_recipe).recipe.model)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_parts_are_on_the_path_that_the_recipe_chose(tiny_recipe):
    model = assemble_model(
        load_recipe(tiny_recipe, ["model.integration=[1]", "model.projector.hidden_dim=24"]).recipe.model
    )
    assert list(model.vision.modulators) == ["1"]
    assert model.language_model.width == 32
    assert [type(policy).__name__ for policy in model.stopping] == ["ModelDecides", "MaxTurns"]


@pytest.mark.parametrize(("overrides", "allowed"), [([], False), (["model.cudnn_attention=true"], True)])
def test_cudnns_attention_is_off_unless_the_recipe_turns_it_on(tiny_recipe, overrides, allowed):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(not allowed)
        with torch.device("meta"):
            assemble_model(load_recipe(tiny_recipe, overrides).recipe.model)
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_model_gives_the_module_of_every_kind_of_part_that_has_weights(tiny_recipe):
    with torch.device("meta"):
        model = assemble_model(load_recipe(tiny_recipe).recipe.model)
    parts = model.parts()
    assert set(parts) == PARTS_WITH_WEIGHTS
    prefixes = {
        kind: next(name for name, module in model.named_modules() if module is part) for kind, part in parts.items()
    }
    assert prefixes == {kind: kind for kind in parts} | {
        "encoder": "vision.backbone",
        "modulator": "vision.modulators",
        "inquiry_encoder": "vision.inquiry_encoder",
    }


def test_all_misfits_are_said_at_once_each_with_its_path(tiny_recipe):
    errors = misfits(tiny_recipe, "model.language_model.config.hidden_size=30", "model.encoder.config.num_heads=5")
    assert [re.match(r"mine\.yaml: model\.(\w+): ", error)[1] for error in errors] == ["language_model", "encoder"]


def test_an_integration_beyond_the_encoder_names_block_and_path(tiny_recipe):
    (error,) = misfits(tiny_recipe, "model.integration=[0, 7]")
    assert "7" in error and "model.integration" in error


@dataclass(frozen=True)
class CloudConfig:
    """No settings."""


def test_a_source_of_another_modality_is_refused_with_what_to_choose(tiny_recipe):
    from vilavt_components.sources.image import ImageSource

    with isolated_registries():

        @sources.register("cloud", CloudConfig)
        class Cloud(ImageSource):
            """Points."""

            modality = "points"

        (error,) = misfits(tiny_recipe, "model.source.name=cloud")
    assert "model.source" in error and "'points'" in error and "'image'" in error


def test_check_shows_every_part_and_changes_nothing(tiny_recipe, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # xdist sets it, and narrow tables break words
    before = sorted(tiny_recipe.parent.rglob("*"))
    assert run(["check", str(tiny_recipe), "model.modulator.name=none"]) == 0
    shown = capsys.readouterr().out
    for part in ("encoder", "modulator", "projector", "language model", "timm", "none", "hf_causal", "32 -> 32"):
        assert part in shown
    assert "every key and name is known, shapes and weights fit" in " ".join(shown.split())
    assert sorted(tiny_recipe.parent.rglob("*")) == before


def test_check_and_training_refuse_weights_that_are_not_there(tiny_recipe, tiny_model, tmp_path, capsys):
    tiny_model.language_model.save_assets(tmp_path / "lm")
    text = yaml.safe_load(tiny_recipe.read_text())
    text["model"]["language_model"] = {"name": "hf_causal", "path": str(tmp_path / "lm")}
    tiny_recipe.write_text(yaml.safe_dump(text))
    for command, code in (("check", 2), ("train", 1)):
        assert run([command, str(tiny_recipe), f"run={tmp_path / 'run'}"]) == code
        told = capsys.readouterr().err
        assert "cannot be loaded" in told and "Qwen" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gone.safetensors", "gone.safetensors' do not exist. Correct the part's `path`"),
        ("weights.pt", "Convert once"),
        ("broken.safetensors", "cannot be read"),
    ],
)
def test_check_sees_that_a_file_of_weights_is_not_there(tiny_recipe, tmp_path, monkeypatch, capsys, file, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    tower = "{embed_dim: 8, text_cfg: {width: 8, heads: 1, layers: 1}}"
    for part, override in {
        "encoder": f"model.encoder.path={file}",
        "inquiry_encoder": f"model.inquiry_encoder={{name: open_clip_text, config: {tower}, path: {file}}}",
    }.items():
        assert run(["check", str(tiny_recipe), override]) == 2
        told = capsys.readouterr().err
        assert f"model.{part}: Weights " in told and words in told and "Traceback" not in told


def test_a_checkpoint_needs_the_file_of_weights_no_more(tiny_recipe, tiny_model, tmp_path):
    tiny_model.language_model.save_assets(tmp_path / "language_model")
    checked = load_recipe(tiny_recipe, [f"model.encoder.path={tmp_path / 'gone.safetensors'}"])
    assert assemble_model(checked.recipe.model, saved=tmp_path)


def test_check_refuses_points_of_other_features_than_the_encoder_takes(capsys):
    assert run(["check", "point_clouds", "model.source.features=[colour, normal]"]) == 2
    told = capsys.readouterr().err
    assert (
        "model.source: source 'point_cloud' gives 9 channels, coordinates included, but encoder 'point_cloud'" in told
    )
    assert "takes 6" in told
    features = ["model.source.features=[]", "model.encoder.features=0"]
    with torch.device("meta"):
        assert assemble_model(load_recipe("point_clouds", features).recipe.model)


def test_check_refuses_to_compile_what_cannot_be(tiny_recipe, capsys):
    assert run(["check", str(tiny_recipe), "model.encoder.name=timm_stages", "train.compile=true"]) == 2
    told = capsys.readouterr().err
    assert "train.compile: " in told and "`compile: false`" in told


def test_check_reports_all_misfits_and_exits_with_usage(tiny_recipe, capsys):
    bad = ["model.language_model.config.hidden_size=30", "model.encoder.config.num_heads=5"]
    assert run(["check", str(tiny_recipe), *bad]) == 2
    told = capsys.readouterr().err
    assert "model.language_model: " in told and "model.encoder: " in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("eval.arms=[shuffled]", "Add `modulated` to the arms"),
        ("eval.arms=[]", "Name at least one arm"),
        ("eval.split=foo", "eval.split: "),
        ("train.gradient_clip=0", "null for no limit"),
        ("train.steps=0", "train.steps: "),
        ("train.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]", "leaves nothing to train"),
        ("train.optimizer.betas=[1.0, 0.9]", "train.optimizer: the optimizer cannot be built (Invalid beta"),
        ("model.integration=[]", "model.integration: Integration is an empty list"),
    ],
)
def test_check_refuses_what_would_fail_later(tiny_recipe, capsys, override, words):
    assert run(["check", str(tiny_recipe), override]) == 2
    told = capsys.readouterr()
    assert words in told.err and told.out == "" and "Traceback" not in told.err


def test_check_says_what_is_wrong_with_task_model_and_optimizer_at_once(tiny_recipe, capsys):
    bad = ["model.encoder.config.num_heads=5", "eval.split=foo", "task.cells=2"]
    assert run(["check", str(tiny_recipe), *bad]) == 2
    told = capsys.readouterr().err
    assert "model.encoder: " in told and "eval.split: " in told and "no split 'foo'" in told


POLICY = """
from vilavt_toolkit.contracts import GO_ON, StoppingPolicy
from vilavt_toolkit.registry import NoSettings, stopping_policies

@stopping_policies.register("mine")
class Mine(StoppingPolicy):
    {body}

    @classmethod
    def tiny(cls):
        return NoSettings()

    def decide(self, state):
        return GO_ON
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def __init__(self, config): super().__init__()", "must be built as __init__(self, config, width)."),
        ("def __init__(self, config, width): pass", "must call super().__init__()"),
        (
            "needs = frozenset({'probes'})\n    def __init__(self, config, width): super().__init__()",
            "requests 'probes', which is not available. `needs` may contain features, hidden, probe.",
        ),
    ],
)
def test_a_stopping_policy_of_ones_own_that_breaks_its_contract_is_refused(tiny_recipe, capsys, body, words):
    (tiny_recipe.parent / "mine.py").write_text(POLICY.format(body=body))
    tiny_recipe.write_text(tiny_recipe.read_text() + "plugins: [./mine.py]\n")
    with isolated_registries():
        assert run(["check", str(tiny_recipe), "model.stopping=[mine]"]) == 2
    told = capsys.readouterr().err
    assert "model.stopping: stopping policy 'mine'" in told and words in told and "Traceback" not in told
