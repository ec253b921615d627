"""The recipes that come with the package: each can be meant, is found by name and path, and has its own run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_toolkit.config.recipe import load_recipe, recipe_names
from vilavt_toolkit.contracts import Region
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.registry import advantages, policy_losses, stopping_policies

ROOT = Path(__file__).parents[1]
EYES = ["open_clip", "qwen2_5_vl", "timm", "timm_stages"]
FROM_HUB = ["vilavt_7b/sft", "vilavt_7b/sft_8gpu", "vilavt_7b/sft_lora_24gb", "vilavt_7b/rl", "vilavt_7b/eval"]
"""Begin as a checkpoint of the hub, and are looked at with one in its place: test_vilavt_recipes.py."""
OWN = [name for name in recipe_names() if name not in FROM_HUB]
MODULATIONS = [name for name in recipe_names() if name.startswith("modulation/")]


@pytest.mark.parametrize("name", OWN)
def test_it_assembles_without_a_weight(name):
    with torch.device("meta"):
        assert assemble_model(load_recipe(name).recipe.model)


@pytest.mark.parametrize("name", OWN)
def test_by_name_and_by_path_it_is_the_same_with_a_run_named_after_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    by_name, by_path = load_recipe(name), load_recipe(f"recipes/{name}.yaml")
    assert by_name.resolved == by_path.resolved
    assert by_name.name == by_path.name == name
    assert by_name.recipe.run == f"runs/{name}"


@pytest.mark.parametrize("name", EYES)
def test_the_quickstart_takes_every_encoder_of_images_by_name_alone(name):
    recipe = load_recipe("quickstart", [f"model.encoder.name={name}"])
    model = assemble_model(recipe.recipe.model)
    region = Region(ImageSource.open(np.zeros((256, 256, 3), np.uint8), ImageConfig()))
    assert model.vision.backbone.feature_grid(model.vision.backbone.prepare(region.crop()).size) == (4, 4)
    assert name == "timm" or any("Dropped settings of 'timm': config, stem" in note for note in recipe.notes)


NAMED = {
    "timm": ["model.encoder.model=vit_tiny_patch16_224"],
    "timm_stages": ["model.encoder.name=timm_stages", "model.encoder.model=resnet10t.c3_in1k"],
    "open_clip": ["model.encoder.name=open_clip", "model.encoder.model=ViT-S-32-alt"],
}


@pytest.mark.parametrize("name", NAMED)
def test_the_quickstart_takes_models_of_libraries_by_one_name(name):
    recipe = load_recipe("quickstart", NAMED[name])
    with torch.device("meta"):
        assert assemble_model(recipe.recipe.model)
    assert any(
        "Dropped: config, stem" in note or "Dropped settings of 'timm': config, stem" in note for note in recipe.notes
    )


def test_a_pretrained_language_model_takes_the_place_of_the_quickstarts_own():
    recipe = load_recipe("quickstart", ["model.language_model.path=owner/model"])
    assert recipe.recipe.model.language_model.config.config == {}


def test_a_recipe_of_ones_own_in_a_folder_has_a_run_named_after_its_file(tmp_path):
    (tmp_path / "modulation").mkdir()
    mine = tmp_path / "modulation" / "film.yaml"
    mine.write_text("inherits: modulation/film\n")
    assert load_recipe(mine).recipe.run == "runs/film"


@pytest.mark.parametrize("name", MODULATIONS)
def test_modulations_are_compared_with_nothing_else_changed(name):
    film, recipe = load_recipe("modulation/film").resolved, load_recipe(name).resolved
    assert recipe["model"]["modulator"]["name"] == name.removeprefix("modulation/")
    for changed in (film, recipe):
        del changed["model"]["modulator"], changed["run"]
    assert recipe == film


def test_modulations_are_compared_on_the_quickstart_without_its_needless_zooms_and_follow_up_questions():
    quickstart, film = load_recipe("quickstart").resolved, load_recipe("modulation/film").resolved
    # They were measured before the quickstart's projector had `center`, which takes fewer steps.
    quickstart["model"]["projector"]["center"], quickstart["train"]["steps"] = False, 1500
    assert (film["model"], film["train"]) == (quickstart["model"], quickstart["train"])
    assert film["task"] == quickstart["task"] | {"needless": 0, "follow_ups": 0}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("encoders/")])
def test_encoders_are_compared_with_nothing_else_changed(name):
    base, recipe = load_recipe("encoders/base").resolved, load_recipe(name).resolved
    for changed in (base, recipe):
        del changed["model"]["encoder"], changed["run"]
    assert recipe == base


@pytest.mark.parametrize("name", [entry.name for entry in stopping_policies.entries()])
def test_every_stopping_policy_has_a_recipe_of_one_run_that_changes_only_when_it_stops(name):
    base, recipe = load_recipe("stopping/base").resolved, load_recipe(f"stopping/{name}").resolved
    stopping = recipe["model"].pop("stopping")
    assert name in {part["name"] for part in (stopping if isinstance(stopping, list) else [stopping])}
    assert recipe["model"] | {"stopping": base["model"]["stopping"]} == base["model"]
    assert (recipe["task"], recipe["eval"]) == (base["task"], base["eval"])
    assert recipe["train"]["init_from"] == base["run"]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("rl/")])
def test_algorithms_are_compared_from_one_run_in_as_many_optimizer_steps(name):
    base, recipe = load_recipe("rl/base").resolved, load_recipe(name).resolved
    section = recipe["rl"]
    assert section["steps"] * section["inner_epochs"] == base["rl"]["steps"] == 60
    for key in ("init_from", "rewards", "optimizer", "prompts_per_step", "group_size"):
        assert section[key] == base["rl"][key], key
    assert (recipe["model"], recipe["task"], recipe["eval"]) == (base["model"], base["task"], base["eval"])


def test_every_advantage_and_policy_loss_has_a_recipe():
    sections = [load_recipe(name).recipe.rl for name in recipe_names() if name.startswith("rl/")]
    assert {section.advantage.name for section in sections} == {entry.name for entry in advantages.entries()}
    assert {section.policy_loss.name for section in sections} == {entry.name for entry in policy_losses.entries()}


@pytest.mark.parametrize(("variable", "folder"), [("MODULATIONS", "modulation"), ("ENCODERS", "encoders")])
def test_every_recipe_that_is_compared_is_trained_by_the_nightly_target(variable, folder):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = next(line for line in makefile.splitlines() if line.startswith(f"{variable} := "))
    own = {name.removeprefix(f"{folder}/") for name in recipe_names() if name.startswith(f"{folder}/")}
    assert set(listed.partition(":= ")[2].split()) == own - {"base"}
