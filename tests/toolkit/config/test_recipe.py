"""Recipes: what they inherit and override, and what is said of everything that is wrong with one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vilavt_toolkit.config.limits import LARGEST
from vilavt_toolkit.config.parsing import to_plain
from vilavt_toolkit.config.recipe import (
    CheckedRecipe,
    dump_recipe,
    find_recipe,
    load_recipe,
    parse_config,
    recipe_names,
)
from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.errors import BadRecipe, RecipeErrors, VilavtError
from vilavt_toolkit.registry import REGISTRIES, modulators, stopping_policies
from vilavt_toolkit.settings import part, setting
from vilavt_toolkit.testing.isolation import isolated_registries

KINDS = (
    "source", "encoder", "inquiry_encoder", "projector", "language_model", "dialogue", "task", "optimizer"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = setting(64, help="how wide", minimum=1)
    mode: Literal["fast", "slow"] = setting("fast", help="which way")
    ratio: float = setting(0.5, help="how much", minimum=0, maximum=1)
    sizes: tuple[int, int] = setting((1, 2), help="two sizes")
    extra: dict[str, Any] = setting(help="anything", factory=dict)
    limit: float | None = setting(None, help="where to end")
    blocks: Literal["all", "late"] | list[int] = setting("all", help="which")


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    files: list[str] | str = setting("", help="which", is_path=True)
    path: str | None = setting(None, help="from where", is_path=True)


@dataclass(frozen=True, kw_only=True)
class OtherConfig:
    depth: int = setting(help="how deep")


@dataclass(frozen=True, kw_only=True)
class EyeConfig:
    model: str | None = setting(None, help="by name", replaces=("config", "stem", "file"))
    config: dict[str, Any] = setting(factory=dict, help="or by shape", replaces=("model", "file"))
    stem: dict[str, Any] | None = setting(None, help="of a shape", replaces=("model",))
    file: str | None = setting(None, help="weights of either")


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with isolated_registries():
        register_toys()
        yield


def register_toys() -> None:
    for kind in KINDS:
        REGISTRIES[kind].register(f"toy_{kind}", ToyConfig)(type("Toy", (), {"__doc__": "A toy."}))
    for name, config in (("toy_film", ToyConfig), ("toy_deep", OtherConfig)):
        modulators.register(name, config)(type(name, (), {"__doc__": "A toy."}))
    REGISTRIES["task"].register("toy_files", FilesConfig)(type("Files", (), {"__doc__": "A toy."}))
    REGISTRIES["encoder"].register("toy_eye", EyeConfig)(type("Eye", (), {"__doc__": "A toy."}))
    for name in ("toy_decides", "toy_turns"):
        stopping_policies.register(name, ToyConfig)(type(name, (), {"__doc__": "A toy."}))


BASE = """
model:
  source: toy_source
  encoder: {name: toy_encoder, width: 32}
  modulator: {name: toy_film, width: 16, ratio: 0.25}
  inquiry_encoder: toy_inquiry_encoder
  projector: toy_projector
  language_model: {name: toy_language_model}
  dialogue: toy_dialogue
  stopping: [toy_decides, {name: toy_turns, width: 4}]
task: toy_task
train: {steps: 100, batch_size: 8, optimizer: {name: toy_optimizer, ratio: 1e-3}}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "base.yaml", BASE)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def complaints(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(path, overrides)
    return caught.value.report().splitlines()


# --- What a recipe becomes -----------------------------------------------------------------------------


def test_a_recipe_becomes_typed_sections_with_every_default_filled_in(base: Path) -> None:
    checked = load_recipe(base)
    recipe = checked.recipe
    assert recipe.model.encoder.config == ToyConfig(width=32)
    assert recipe.model.encoder.entry.cls.__doc__ == "A toy."
    assert [p.name for p in recipe.model.stopping] == ["toy_decides", "toy_turns"]
    assert recipe.train.optimizer.config.ratio == 0.001
    assert (recipe.run, recipe.seed, recipe.eval.split) == ("runs/base", 0, "test")
    assert checked.resolved["model"]["modulator"]["mode"] == "fast"
    assert checked.resolved["train"]["precision"] == "32-true"
    assert checked.notes == ()


def test_the_resolved_recipe_reads_back_to_itself_from_another_folder(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "empty_plugin.py", "")
    checked = load_recipe(base, ["plugins=[./empty_plugin.py]"])
    (tmp_path / "elsewhere").mkdir()
    again = load_recipe(write(tmp_path / "elsewhere" / "recipe.yaml", dump_recipe(checked)))
    assert (again.recipe, again.resolved) == (checked.recipe, checked.resolved)


def test_references_to_other_keys_are_filled_in(base: Path) -> None:
    overrides = [
        "train.warmup_steps=${train.steps}",
        "run=runs/w${model.encoder.width}",
        "train.log_every=${eval.items}",
        "eval.items=${model.stopping[1].width}",
    ]
    checked = load_recipe(base, overrides)
    assert checked.recipe.train.warmup_steps == 100
    assert checked.recipe.run == "runs/w32"
    assert checked.recipe.train.log_every == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${oc.env:HOME}", "no plain reference"),
        ("${train.nothing}", "does not set"),
        ("${run}", "circle"),
        ("x${model}", "is no text or number"),
        ("$${model.encoder.name}{", None),
    ],
)
def test_nothing_but_plain_references_is_evaluated(base: Path, text: str, said: str | None) -> None:
    if said is None:
        assert load_recipe(base, [f"run={text}"]).recipe.run == "$toy_encoder{"
        return
    errors = complaints(base, f"run={text}")
    assert len(errors) == 1
    assert errors[0].startswith("BadConfig: command line: run: ")
    assert said in errors[0]


# --- Inheritance and overrides -------------------------------------------------------------------------


def test_a_child_changes_keys_and_the_command_line_has_the_last_word(base: Path, tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", "inherits: base\ntrain: {steps: 5}\nmodel: {encoder: {mode: slow}}\n")
    grandchild = write(tmp_path / "grandchild.yaml", "inherits: ./child.yaml\nseed: 3\n")
    checked = load_recipe(grandchild, ["train.batch_size=2", "model.stopping[1].width=9", "model.stopping.0.width=8"])
    recipe = checked.recipe
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (3, 5, 2)
    assert recipe.model.encoder.config == ToyConfig(width=32, mode="slow")
    assert [p.config.width for p in recipe.model.stopping] == [8, 9]
    assert recipe.run == "runs/grandchild"
    assert load_recipe(child).recipe.train.batch_size == 8


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.modulator.name=toy_deep", "model.modulator.depth=2"],
        ["model.modulator.depth=2", "model.modulator.name=toy_deep"],
        ["model.modulator={name: toy_deep, depth: 2}"],
        ["model.modulator.depth=2", "model.modulator=toy_deep"],
        ["model.modulator=[{name: toy_deep, depth: 2}]"],
    ],
)
def test_another_component_drops_the_old_ones_settings(base: Path, overrides: list[str]) -> None:
    checked = load_recipe(base, overrides)
    (modulator,) = checked.recipe.model.modulator
    assert modulator.config == OtherConfig(depth=2)


def test_what_is_wrong_with_a_section_is_told_of_the_last_file_that_set_something_in_it(base: Path, tmp_path: Path):
    write(tmp_path / "child.yaml", "inherits: base\ntrain: {steps: 5}\n")
    where = load_recipe(write(tmp_path / "grandchild.yaml", "inherits: ./child.yaml\nseed: 3\n")).where
    assert where(("train",)).endswith("child.yaml: train") and "grandchild" not in where(("train",))
    assert where(("model",)).endswith("base.yaml: model")


def test_dropped_settings_are_told(base: Path, tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", "inherits: base\nmodel: {modulator: {name: toy_deep, depth: 1}}\n")
    (note,) = load_recipe(child).notes
    assert note == (
        "child.yaml: model.modulator: 'toy_deep' replaces 'toy_film' of base.yaml. "
        "Dropped settings of 'toy_film': width, ratio."
    )


def test_naming_the_same_component_again_keeps_its_settings(base: Path) -> None:
    checked = load_recipe(base, ["model.modulator.name=toy_film", "model.encoder=toy_encoder"])
    assert checked.recipe.model.modulator[0].config.width == 16
    assert checked.recipe.model.encoder.config.width == 32
    assert checked.notes == ()


BY_SHAPE = "{name: toy_eye, config: {width: 8}, stem: {norm: a}, file: w}"
BY_NAME = "{name: toy_eye, model: vit, file: w}"


def with_encoder(base: Path, encoder: str) -> Path:
    return write(base.parent / "eye.yaml", f"inherits: base\nmodel: {{encoder: {encoder}}}\n")


@pytest.mark.parametrize(
    ("inherited", "override", "expected", "gone"),
    [
        (BY_SHAPE, "model: vit", EyeConfig(model="vit"), "'model' .... Dropped: config, stem, file."),
        (BY_SHAPE, "model: vit, file: v", EyeConfig(model="vit", file="v"), "'model' .... Dropped: config, stem."),
        (BY_NAME, "config: {width: 3}", EyeConfig(config={"width": 3}), "'config' .... Dropped: model, file."),
        (BY_NAME, "model: bit", EyeConfig(model="bit", file="w"), None),
        (BY_NAME, "config: {}", EyeConfig(model="vit", file="w"), None),
    ],
)
def test_an_alternative_set_later_takes_the_place_of_the_inherited_ones(
    base: Path, inherited: str, override: str, expected: EyeConfig, gone: str | None
) -> None:
    parent = with_encoder(base, inherited)
    child = write(base.parent / "child.yaml", f"inherits: eye\nmodel: {{encoder: {{{override}}}}}\n")
    layers = {
        "command line": load_recipe(parent, [f"model.encoder={{{override}}}"]),
        "child.yaml": load_recipe(child),
    }
    if ", " not in override:
        key, _, value = override.partition(": ")
        layers["command line "] = load_recipe(parent, [f"model.encoder.{key}={value}"])
    for label, checked in layers.items():
        assert checked.recipe.model.encoder.config == expected
        told = gone and f"{label.strip()}: model.encoder: {gone.replace('...', 'replaces settings of eye.yaml')}"
        assert [note for note in checked.notes if "of eye.yaml" in note] == ([told] if told else [])


def test_a_key_inside_an_alternative_takes_the_place_too(base: Path) -> None:
    checked = load_recipe(with_encoder(base, BY_NAME), ["model.encoder.config.width=3"])
    assert checked.recipe.model.encoder.config == EyeConfig(config={"width": 3})


def test_a_replaced_setting_leaves_a_recipe_that_reads_back_and_can_be_overridden_again(base: Path) -> None:
    checked = load_recipe(with_encoder(base, BY_SHAPE), ["model.encoder.model=vit"])
    resolved = write(base.parent / "resolved.yaml", dump_recipe(checked))
    assert load_recipe(resolved).recipe == checked.recipe
    again = load_recipe(resolved, ["model.encoder.config={width: 3}"])
    assert again.recipe.model.encoder.config == EyeConfig(config={"width": 3})


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.encoder={name: toy_eye, model: vit, config: {width: 1}}"],
        ["model.encoder.name=toy_eye", "model.encoder.model=vit", "model.encoder.config={width: 1}"],
        ["model.encoder=toy_eye", "model.encoder.config.width=1", "model.encoder.model=vit"],
    ],
)
def test_two_alternatives_of_one_layer_are_refused_naming_both_and_the_way_out(
    base: Path, overrides: list[str]
) -> None:
    for recipe in (base, with_encoder(base, BY_SHAPE), with_encoder(base, BY_NAME)):
        (error,) = complaints(recipe, *overrides)
        assert "model.encoder.config: it and `model` (" in error
        assert "command line" in error
        assert error.endswith("are alternatives. Leave one out, or write `model: null` or `config: {}`.")


def test_one_part_is_overridden_alike_before_and_after_resolving(base: Path, tmp_path: Path) -> None:
    resolved = write(tmp_path / "resolved.yaml", dump_recipe(load_recipe(base)))
    for path in (base, resolved):
        for key in ("model.modulator.width", "model.modulator[0].width"):
            assert load_recipe(path, [f"{key}=3"]).recipe.model.modulator[0].config.width == 3


def test_plugins_of_parent_and_child_are_loaded_each_from_its_own_folder(base: Path, tmp_path: Path) -> None:
    plugin = (
        "from vilavt_toolkit.registry import modulators\n@modulators.register('{0}')\nclass R:\n    '''A gate.'''\n"
    )
    (tmp_path / "deep").mkdir()
    write(tmp_path / "mine.py", plugin.format("toy_parent"))
    write(tmp_path / "deep" / "mine.py", plugin.format("toy_child"))
    write(tmp_path / "parent.yaml", "inherits: base\nplugins: [./mine.py]\n")
    child = write(tmp_path / "deep" / "child.yaml", "inherits: ../parent.yaml\nplugins: [mine.py]\n")
    assert load_recipe(child).recipe.plugins == [
        str(tmp_path / "mine.py"),
        str(tmp_path / "deep" / "mine.py"),
    ]
    assert {"toy_parent", "toy_child"} <= set(REGISTRIES["modulator"].names())


def test_files_lie_beside_the_recipe_that_names_them_or_where_the_command_runs(base: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    (deep / "data").mkdir(parents=True)
    for name in ("a.json", "b-01.tar", "here.json"):
        write(deep / "data" / name, "")
    write(tmp_path / "here.json", "")
    write(deep / "parent.yaml", "task: {name: toy_files, files: data/a.json, path: owner/model}\n")
    child = write(tmp_path / "child.yaml", BASE.replace("task: toy_task", "inherits: deep/parent.yaml"))

    def read(*overrides: str) -> FilesConfig:
        return load_recipe(child, overrides).recipe.task.config

    assert (read().files, read().path) == (str(deep / "data" / "a.json"), "owner/model")
    assert read("task.files=data/a.json").files == "data/a.json", "of the command line, relative to this folder"
    assert read("task.path=~nobody-at-all/model").path == "~nobody-at-all/model"
    write(deep / "parent.yaml", "task: {name: toy_files, files: ['data/b-{00..01}.tar', here.json]}\n")
    assert read().files == [str(deep / "data" / "b-{00..01}.tar"), "here.json"]


# --- What is wrong -------------------------------------------------------------------------------------


def test_an_unknown_component_is_told_as_the_architecture_promises(base: Path) -> None:
    text = base.read_text().replace("toy_film", "toy_flim").replace(", ratio: 0.25", "")
    errors = complaints(write(base.parent / "my.yaml", text))
    assert errors[0] == (
        "UnknownName: my.yaml: model.modulator.name: no modulator named 'toy_flim'. Did you mean 'toy_film'?"
    )
    assert re.match(r"  registered modulators: .*toy_deep, toy_film", errors[1])
    assert errors[2].startswith("  loaded from: ")
    assert errors[3:] == ["  For a component of your own, add its file to `plugins:` in my.yaml."]


def test_an_unknown_setting_is_told_as_the_architecture_promises(base: Path) -> None:
    errors = complaints(write(base.parent / "my.yaml", BASE.replace("width: 16", "widht: 16")))
    assert errors == [
        "BadConfig: my.yaml: model.modulator.widht: 'toy_film' has no setting 'widht'. Did you mean 'width'?",
        "  settings of modulator 'toy_film' (ToyConfig): width, mode, ratio, sizes, extra, limit, blocks",
    ]


def test_every_error_comes_at_once_each_with_its_own_file_and_path(base: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "parent.yaml",
        "inherits: base\ntrain: {steps: many}\nmodel: {stopping: [toy_decides, toy_turn]}\n",
    )
    child = write(
        tmp_path / "child.yaml",
        "inherits: parent\nplugins: [./gone.py]\nmodle: {}\nmodel: {integration: [1, x], encoder: {sizes: [1]}}\n",
    )
    errors = complaints(child, "eval.items=0", "train.batch_size=-1", "seed", "train.steps.x=1")
    paths = [line.split(": ")[1:3] for line in errors if not line.startswith("  ")]
    assert sorted(paths) == sorted(
        [
            ["'seed' is no override. Write key=value, like train.steps=100."],
            ["child.yaml", "plugins"],
            ["command line", "train.steps is no mapping and has no 'x'. Write train.steps=VALUE instead."],
            ["child.yaml", "modle"],
            ["child.yaml", "model.integration[1]"],
            ["child.yaml", "model.encoder.sizes"],
            ["parent.yaml", "model.stopping[1].name"],
            ["parent.yaml", "train.steps"],
            ["command line", "train.batch_size"],
            ["command line", "eval.items"],
        ]
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=true", "train.steps: expected an int, got True (bool)."),
        ("train.steps=1e3", "train.steps: expected an int, got 1000.0 (float). Write 1000."),
        ("train.steps=-1", "train.steps: -1 is below the least, 1 (optimizer steps)."),
        ("train.optimizer.ratio=1.5", "train.optimizer.ratio: 1.5 is above the most, 1 (how much)."),
        ("train.optimizer.ratio=.nan", "train.optimizer.ratio: expected a finite float, got nan."),
        (
            "train.precision=bf16",
            "one of 32-true, bf16-mixed, 16-mixed, bf16-true, got 'bf16' (str). Did you mean 'bf16-mixed'?",
        ),
        ("run=3", "run: expected text, got 3 (int). Put the text in quotes, on a command line within others: 'run="),
        ("train.gradient_clip=x", "train.gradient_clip: expected a float, got 'x' (str)."),
        (
            "model.encoder.blocks=3",
            "model.encoder.blocks: expected one of all, late or a list of ints, got 3",
        ),
        ("model.encoder.sizes=[1, 2, 3]", "model.encoder.sizes: expected 2 values, got 3."),
        ("model.encoder.extra=[1]", "model.encoder.extra: expected a mapping, got [1] (list)."),
        (
            "model.encoder=null",
            "the name of a registered encoder, or a mapping of name and settings, got null.",
        ),
        ("model.stopping=[]", "model.stopping: the list is empty. Name at least one stopping policy."),
        ("model.stopping.width=1", "model.stopping has 2 components. Write which one, as in model.stopping[0].width."),
        ("model.stopping[2].width=1", "model.stopping has 2 items and no 2. Write a number from 0 to 1."),
        (
            "model.modulator.name=toy_deep",
            "model.modulator.depth: missing, and it has no default. Set model.modulator.depth (how deep).",
        ),
        ("train.micro_batch=3", "train: micro_batch 3 does not divide batch_size 8. Write a divisor of it."),
        ("model.encoder.mode=fats", "Did you mean 'fast'?"),
        ("model.encoder.3x!.=1", "is no key. Write it like"),
        ("run=[1", "command line: run=[1: "),
        ("run=${", "'${'"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence_at_its_path(base: Path, override: str, said: str) -> None:
    errors = complaints(base, override)
    assert said in errors[0]
    assert "command line" in errors[0] or "base.yaml" in errors[0] or errors[0].startswith("UsageError")


@pytest.mark.parametrize("value", ["0", "no", "off", "false", "0.0", "null", "~", "", "-0", "[]", "{}"])
@pytest.mark.parametrize("key", ["run", "train.init_from", "model.checkpoint"])
def test_what_yaml_reads_as_empty_is_refused_as_text_and_never_the_default(base: Path, key: str, value: str) -> None:
    (told,) = complaints(base, f"{key}={value}")
    assert f"{key}: expected text, got" in told
    if "." not in key:
        own = write(base.parent / "own.yaml", f"inherits: base.yaml\n{key}: {value}\n")
        assert complaints(own)[0].startswith(told.split(": ")[0])


def test_an_empty_text_is_the_default_and_quotes_make_any_word_a_text(base: Path) -> None:
    assert load_recipe(base, ['run=""']).recipe.run == "runs/base"
    assert [load_recipe(base, [f'run="{word}"']).recipe.run for word in ("0", "no", "null")] == ["0", "no", "null"]


def test_a_part_that_must_be_named_lists_what_there_is(base: Path) -> None:
    errors = complaints(write(base.parent / "my.yaml", BASE.replace("task: toy_task\n", "")))
    assert errors[0] == "BadConfig: my.yaml: task: missing, and it has no default. Set task (data set or benchmark)."
    assert "toy_task" in errors[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "seed: 1\nrun: a\nseed: 2\n",
            r"bad\.yaml, line 3: the key 'seed' stands twice in one mapping\. Keep one of them\.",
        ),
        ("seed: [1\nrun: 2\n", r"bad\.yaml, line [12]: "),
        ("- 1\n", r"bad\.yaml holds no mapping"),
        ("3\n", r"bad\.yaml holds no mapping"),
        ("seed: !!python/object/apply:os.system ['true']\n", r"bad\.yaml, line 1: could not determine"),
        ("a: &a [*a]\n", r"bad\.yaml, line 1: "),
        ("run: ${\n", r"bad\.yaml: run: "),
        ("~: 3\n", r"bad\.yaml: "),
        ("inherits: bad\n", r"bad\.yaml: inherits: the recipes inherit each other in a circle: bad\.yaml -> bad\.yaml"),
        ("inherits: nowhere.yaml\n", r"bad\.yaml: inherits: there is no recipe file .*nowhere\.yaml"),
        ("inherits: [base]\n", r"bad\.yaml: inherits: write the name or path of one recipe"),
        ("inherits: bsae\n", r"bad\.yaml: inherits: no recipe named 'bsae'"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_recipe_names_file_and_line(base: Path, text: str, said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        load_recipe(write(base.parent / "bad.yaml", text))


def test_a_binary_file_is_no_recipe(base: Path) -> None:
    (base.parent / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BadRecipe, match=r"image\.yaml is no UTF-8 text"):
        load_recipe(base.parent / "image.yaml")


def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"no recipe named 'no_such'.*\n  recipes: .*\n.*\./no_such\.yaml"):
        find_recipe("no_such")
    with pytest.raises(BadRecipe, match=r"cannot be read \(File name too long\)\. Check the path"):
        find_recipe(tmp_path / f"{'x' * 300}.yaml")
    with pytest.raises(BadRecipe, match=r"child\.yaml: inherits: .* cannot be read \(File name too long"):
        load_recipe(write(tmp_path / "child.yaml", f"inherits: {'x' * 300}.yaml\n"))
    with pytest.raises(BadRecipe, match="there is no recipe file"):
        find_recipe(tmp_path / "no_such.yaml")


def test_recipes_of_the_package_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in recipe_names():
        assert find_recipe(name).is_file()


# --- Facts about all data ------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["toy_film", "toy_encoder", "${train.steps}", "${seed}", "all", "1e-3", "no", "~"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "width", "extra", "model", "encoder", "steps"])
            | st.integers()
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
SECTIONS = ["seed", "run", "model", "task", "train", "eval", "plugins"]


@given(data=PLAIN | st.dictionaries(st.sampled_from(SECTIONS), PLAIN))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_data_makes_the_parser_fail_in_any_way_but_its_own(data: Any) -> None:
    for cls in (Recipe, ToyConfig):
        try:
            value = parse_config(cls, data, "here")
        except VilavtError as error:
            assert str(error)
        else:
            assert parse_config(cls, to_plain(value)) == value


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALID = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT.filter(lambda text: "${" not in text)
    | st.sampled_from(["1e-3", "no", "~", "???", "12:30", "0x1", "", " a ", "#", "{", "2020-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(
    extra=st.dictionaries(TEXT, VALID, max_size=3),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    run=TEXT.filter(lambda text: text and "${" not in text),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_dumped_reads_back_to_the_same(
    base: Path, extra: dict[str, Any], limit: float | None, run: str
) -> None:
    layer = {"inherits": str(base), "run": run, "model": {"encoder": {"extra": extra, "limit": limit}}}
    quoted = yaml.safe_dump(layer, default_style='"', allow_unicode=True)
    checked = load_recipe(write(base.parent / "drawn.yaml", quoted))
    assert (checked.recipe.run, checked.recipe.model.encoder.config.limit) == (run, limit)
    assert checked.recipe.model.encoder.config.extra == extra
    again = reload(base.parent / "again.yaml", checked)
    assert again.resolved == checked.resolved
    assert again.recipe == checked.recipe
    assert dump_recipe(again) == dump_recipe(checked)


def reload(path: Path, checked: CheckedRecipe) -> CheckedRecipe:
    return load_recipe(write(path, dump_recipe(checked)))


# --- Parts inside settings -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AnyOfConfig:
    policies: Any = part("stopping", "any of these", ("toy_decides", "toy_turns"), many=True)
    best: Any = part("encoder", "a part of a part", "toy_encoder")


def test_a_component_may_hold_components(base: Path) -> None:
    stopping_policies.register("toy_any_of", AnyOfConfig)(type("AnyOf", (), {"__doc__": "A toy."}))
    checked = load_recipe(base, ["model.stopping=toy_any_of", "model.stopping.policies[1].width=2"])
    (policy,) = checked.recipe.model.stopping
    assert [p.config.width for p in policy.config.policies] == [64, 2]
    errors = complaints(base, "model.stopping={name: toy_any_of, policies: [toy_decides, toy_trns]}")
    assert "model.stopping.policies[1].name: no stopping policy named 'toy_trns'" in errors[0]


# --- Limits --------------------------------------------------------------------------------------------

DOUBLED = "\n".join(f"x{i + 1}: '{f'${{x{i}}}' * 8}'" for i in range(12))
ALIASES = "\n".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]" for i in range(30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: '${x12}'\nx0: aaaaaaaa\n" + DOUBLED, "more than 100,000 values and characters"),
        ("\n".join(f"x{i}: '${{x{i + 1}}}'" for i in range(60)), "more than 50 references lead to each other"),
        ("b0: &b0 [1]\n" + ALIASES, "more than 10,000 values"),
        ("run: " + "[" * 100_000, "more than 50 levels"),
        ("{a: " * 100_000, "more than 50 levels"),
        ("#" * 1_000_001, "more than 1,000,000 characters"),
        ("#" * 4_000_001, "larger than 4,000,000 bytes"),
        ("model: {modulator: [" + "toy_film, " * 200 + "]}", "more than 100 components"),
    ],
)
def test_a_recipe_that_grows_without_bound_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(VilavtError, match=said):
        load_recipe(write(tmp_path / "large.yaml", text))


def test_an_override_has_the_same_limits(base: Path) -> None:
    assert "more than 50 levels" in complaints(base, "model.encoder.extra=" + "[" * 100_000)[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size=1000000000", "train.batch_size: 1000000000 is above the most, 100000 (dialogues of an"),
        ("train.steps=0x" + "f" * 9000, "train.steps: a number that large is above the most, 1000000000"),
        ("train.batch_size=1e30", "train.batch_size: expected an int, got 1e+30 (float)."),
        ("model.encoder.extra={depth: 1000000}", "extra.depth: 1000000 is above the most, 256. Write 256 or less."),
        ("model.encoder.extra={layers: [200, 200]}", "extra.layers: 400 is above the most, 256."),
        ("model.encoder.extra={a: {num_heads: -1}}", "extra.a.num_heads: -1 is below the least, 1."),
        ("model.encoder.extra={anything: 1000000000001}", "extra.anything: 1000000000001 is above the most"),
        ('run="a\\0b"', "run: the text holds a zero byte"),
        (f"train.init_from={'x' * 300}", "train.init_from: the name is longer than files can have."),
        (f"run={'x' * 300}", "run: the name is longer than files can have."),
        (f"{'x' * 3000}=1", "no key"),
        ("a" + ".a" * 5000 + "=1", "no key"),
        ("run=${a" + ".a" * 5000 + "}", "no key"),
        ("model.stopping[" + "1" * 5000 + "]=a", "no key"),
        (f"model.modulator={'x' * 5000}", "no modulator named 'xxx"),
        (f"plugins=[{'x' * 5000}.py]", "plugins: the name is longer than files can have."),
        ("model.encoder.name=0x" + "f" * 9000, "model.encoder.name: expected text"),
    ],
)
def test_a_number_or_name_without_sense_is_refused_at_its_key(base: Path, override: str, said: str) -> None:
    errors = complaints(base, override)
    assert said in errors[0]
    assert len(errors[0]) < 600


def test_what_is_no_regular_file_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "device.yaml", "~nobody-at-all/a.yaml"):
        with pytest.raises(BadRecipe):
            load_recipe(name if name.startswith("~") else tmp_path / name)


def test_only_recipes_are_inherited_so_that_no_error_quotes_another_file(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.conf", "password: hunter2\n")
    (tmp_path / "link.yaml").symlink_to(secret)
    for name, said in ((secret, r"no \.yaml file"), ("secret.conf", r"no \.yaml file"), ("link", "a link to a file")):
        with pytest.raises(BadRecipe, match=said) as caught:
            load_recipe(write(tmp_path / "child.yaml", f"inherits: {name}\n"))
        assert "hunter2" not in str(caught.value) and "password" not in str(caught.value)


def test_many_errors_are_told_in_part(base: Path) -> None:
    base.write_text(BASE + "\n".join(f"key{i}: 1" for i in range(200)))
    assert complaints(base)[-1] == "... and 150 more errors."


# --- The command line ----------------------------------------------------------------------------------


def test_no_value_of_the_command_line_is_cut_at_a_number_sign(base: Path) -> None:
    for text in ("my data #1", "#1", "a # b"):
        assert load_recipe(base, [f"run={text}"]).recipe.run == text
    assert load_recipe(base, ["run='my data #1'"]).recipe.run == "my data #1"
    assert load_recipe(base, ["run=a#b"]).recipe.run == "a#b"
    assert "Put the text that holds it in quotes" in complaints(base, "model.encoder.sizes=[1 #2]")[0]


def test_an_error_inside_a_section_says_which_values_came_from_the_command_line(base: Path) -> None:
    assert complaints(base, "train.micro_batch=3", "train.steps=7") == [
        "BadConfig: base.yaml with command line train.micro_batch, train.steps: train: micro_batch 3 does not divide "
        "batch_size 8. Write a divisor of it."
    ]
