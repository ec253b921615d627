"""Keys that were renamed: a recipe with an old one is refused with the new name, and old checkpoints are translated."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vilavt_toolkit.cli import run
from vilavt_toolkit.config.parsing import typed_fields
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.renamed_keys import rename_old_keys
from vilavt_toolkit.config.schema import Recipe, RLSection, TrainSection
from vilavt_toolkit.errors import RecipeErrors
from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.registry.plugins import load_builtin

OLD: dict[str, Any] = {
    "model": {
        "encoder": {"name": "timm", "file": "w.safetensors"},
        "projector": {"name": "mlp", "hidden": 32},
        "dialogue": {"name": "native", "steps": 4},
        "stopping": [
            "model_decides",
            {"name": "any_of", "policies": [{"name": "confidence", "of": "turn", "after": 1}]},
        ],
    },
    "task": {"name": "digit_scenes", "steps": 4},
    "train": {"steps": 1, "start": "runs/a", "prepare": "ahead", "examples": 8},
    "rl": {
        "prompts": 2,
        "rewards": {"name": "gated", "reward": {"name": "reencode_cost", "most": 1.0}, "where": "answer"},
    },
}
NEW: dict[str, Any] = {
    "model": {
        "encoder": {"name": "timm", "path": "w.safetensors"},
        "projector": {"name": "mlp", "hidden_dim": 32},
        "dialogue": {"name": "native", "box_units": 4},
        "stopping": [
            "model_decides",
            {"name": "any_of", "policies": [{"name": "confidence", "probability_of": "turn", "min_looks": 1}]},
        ],
    },
    "task": {"name": "digit_scenes", "box_units": 4},
    "train": {"steps": 1, "init_from": "runs/a", "preprocess": "ahead", "max_samples": 8},
    "rl": {
        "prompts_per_step": 2,
        "rewards": {"name": "gated", "reward": {"name": "reencode_cost", "max_cost": 1.0}, "condition": "answer"},
    },
}


def test_old_keys_are_translated_at_every_depth_and_nothing_else_is():
    assert rename_old_keys(OLD) == NEW
    assert rename_old_keys(NEW) == NEW
    unknown = {"model": {"encoder": {"name": "of_a_plugin", "file": 1}, "no_such": [1]}, "rl": None}
    assert rename_old_keys(unknown) == unknown


def test_an_old_key_beside_its_new_one_is_left_for_the_parser_to_refuse():
    both = {"rl": {"group": 2, "group_size": 4}}
    assert rename_old_keys(both) == both


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rl.group=4", "command line: rl.group: this key is now called group_size. Write rl.group_size."),
        ("model.dialogue.steps=8", "model.dialogue.steps: this key is now called box_units. Write "),
        (
            "model.stopping=[{name: learned_halt, hidden: 8}]",
            "model.stopping[0].hidden: this key is now called hidden_dim. Write model.stopping[0].hidden_dim.",
        ),
        (
            "seed=${model.dialogue.steps}",
            "${model.dialogue.steps} the key steps is now called box_units. Write ${model.dialogue.box_units}.",
        ),
    ],
)
def test_an_old_key_of_the_command_line_is_refused_with_the_new_one(override, sentence, capsys):
    assert run(["check", "quickstart", override]) == 2
    assert sentence in capsys.readouterr().err


def test_an_old_key_of_a_file_is_one_error_even_where_the_new_one_is_required(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("inherits: quickstart\nrl:\n  prompts: 4\n", encoding="utf-8")
    with pytest.raises(RecipeErrors) as error:
        load_recipe(path)
    expected = f"BadConfig: {path}: rl.prompts: this key is now called prompts_per_step. Write rl.prompts_per_step."
    assert str(error.value) == expected
    path.write_text(
        path.read_text().replace("inherits: quickstart\nrl:", "inherits: quickstart\nrl:\n  group: 4"),
        encoding="utf-8",
    )
    with pytest.raises(RecipeErrors, match=r"rl\.group: .*\n.*rl\.prompts: "):
        load_recipe(path)


def test_no_old_key_is_a_key_today_or_of_two_settings():
    load_builtin()
    sections = [Recipe, TrainSection, RLSection]
    components = [entry.config for registry in REGISTRIES.values() for entry in registry.entries()]
    for cls in [*sections, *components]:
        assert dataclasses.is_dataclass(cls)
        known = typed_fields(cls)
        old = [name for f, _ in known.values() for name in f.metadata.get("formerly", ())]
        assert not set(old) & set(known), cls
        assert len(old) == len(set(old)), cls
