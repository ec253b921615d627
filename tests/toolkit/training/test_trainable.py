"""Which weights a stage trains: by parts and patterns, and never a new part frozen at random in silence."""

from __future__ import annotations

import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build, load
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.trainable import select_trained, trainable_parameters


def selected(recipe, *overrides: str):
    """The names of the weights that are trained, and the model."""
    model = build(recipe).train()
    select_trained(model, load_recipe(recipe, overrides).recipe.train)
    return {name for name, _ in trainable_parameters(model)}, model


def test_patterns_freeze_weights_and_layers_and_unfreeze_gives_some_back(tiny_recipe):
    everything, _ = selected(tiny_recipe)
    freeze = "train.freeze=[encoder, language_model.model.model.layers.0, language_model.*lm_head*]"
    trained, _ = selected(tiny_recipe, freeze, 'train.unfreeze=["vision.backbone.*norm*"]')
    frozen = everything - trained
    assert any(name.startswith("language_model.model.model.layers.0.") for name in frozen)
    for name in everything:
        is_frozen = name.startswith("language_model.model.model.layers.0.") or "lm_head" in name
        is_frozen |= name.startswith("vision.backbone.") and "norm" not in name
        assert (name in frozen) == is_frozen, name
    assert any("norm" in name and name.startswith("vision.backbone.") for name in trained)


def test_a_module_is_in_evaluation_mode_exactly_if_all_its_weights_are_frozen(tiny_recipe):
    _, model = selected(tiny_recipe, "train.freeze=[encoder, language_model.model.model.layers.0]")
    layers = model.language_model.model.model.layers
    assert not any(module.training for module in layers[0].modules())
    assert not any(module.training for module in model.vision.backbone.modules())
    assert layers[1].training and model.language_model.training and model.projector.training


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.freeze=[encodr]", r"'encodr' in train\.freeze matches no weight\. Nearest: encoder"),
        ("train.unfreeze=[language_model.*qproj]", r"train\.unfreeze matches no weight\. Nearest: .*q_proj"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(tiny_recipe, override, words):
    with pytest.raises(BadConfig, match=words):
        selected(tiny_recipe, override)


def test_what_a_part_freezes_itself_is_not_unfrozen(tiny_recipe):
    model = build(tiny_recipe)
    model.vision.inquiry_encoder.requires_grad_(False)
    with pytest.raises(BadConfig, match=r"hold.* weights that their own part freezes"):
        select_trained(model, load_recipe(tiny_recipe, ["train.unfreeze=[inquiry_encoder]"]).recipe.train)


@pytest.mark.parametrize("freeze", ["modulator", "projector", "vision.modulators.*.weight"])
def test_a_new_modulator_or_projector_is_not_frozen_unless_the_recipe_allows_it(tiny_recipe, tmp_path, freeze):
    settings = ["train.steps=1", "train.batch_size=2", f"train.freeze=['{freeze}']"]
    with pytest.raises(BadConfig, match=r"is new in this stage.*train\.freeze_new=true"):
        run_supervised(load_recipe(tiny_recipe, [*settings, f"run={tmp_path / 'refused'}"]))
    assert not (tmp_path / "refused" / "checkpoints").exists()
    first = run_supervised(load_recipe(tiny_recipe, [*settings, f"run={tmp_path / 'a'}", "train.freeze_new=true"]))
    # Another stage begins with weights that are there.
    second = [*settings, f"run={tmp_path / 'b'}", f"train.init_from={first}"]
    before, after = load(first), load(run_supervised(load_recipe(tiny_recipe, second)))
    same = {name: torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items()}
    chosen = "vision.modulators." if "modulator" in freeze else "projector."
    assert all(same[name] for name in same if name.startswith(chosen) and name.endswith("weight"))
    assert not all(same.values())
