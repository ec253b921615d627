"""Checkpoints: whole or not at all, the same model when they come back, one sentence when they do not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vilavt_toolkit.checkpoints import native
from vilavt_toolkit.checkpoints.facts import FORMAT, read_step
from vilavt_toolkit.checkpoints.loading import build, load
from vilavt_toolkit.checkpoints.native import find_checkpoint, save_checkpoint
from vilavt_toolkit.checkpoints.training_state import TrainingState, load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError, RunError
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.isolation import isolated_registries


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of the trained run, to be damaged."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def logits(model, task) -> torch.Tensor:
    sessions = [build_trace_session(model, task.sample("train", index)) for index in range(3)]
    with torch.no_grad():
        return model(collate([s.trajectory for s in sessions], [s.views for s in sessions], model.language_model))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_saved_model_gives_identical_logits(tiny_recipe, tiny_task, tmp_path, tied):
    overrides = [f"model.language_model.config.tie_word_embeddings={tied}"]
    model = build(tiny_recipe, overrides)
    folder = save_checkpoint(tmp_path / "run", model, load_recipe(tiny_recipe, overrides), 7)
    torch.manual_seed(99)
    back = load(tmp_path / "run")
    assert torch.equal(logits(back, tiny_task), logits(model, tiny_task))
    language = back.language_model.model
    assert (language.get_input_embeddings().weight is language.get_output_embeddings().weight) is (tied == "true")
    assert not back.training
    assert read_step(folder) == 7


def test_a_checkpoint_is_enough_alone_and_elsewhere(run, tmp_path, monkeypatch, tiny_task):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoints" / "step-00000004", elsewhere)
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path)
    assert logits(load("elsewhere"), tiny_task).shape[0] == 3
    names = {path.suffix for path in elsewhere.rglob("*") if path.is_file()}
    assert not names & {".bin", ".pt", ".pkl", ".ckpt"}, "nothing is pickled"


def test_the_newest_checkpoint_is_loaded_and_the_last_two_kept(tiny_recipe, tmp_path):
    model, recipe = build(tiny_recipe), load_recipe(tiny_recipe)
    run = tmp_path / "run"
    for step in (5, 90, 100):
        save_checkpoint(run, model, recipe, step)
    assert find_checkpoint(run).name == "step-00000100"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000090", "step-00000100"]


@pytest.mark.parametrize("step", [4, 6], ids=["over itself", "a new one"])
@pytest.mark.parametrize("broken", ["save_model", "save_file", "write_json", "collect_versions"])
def test_a_failure_while_writing_leaves_the_previous_checkpoint_and_no_half(
    run, tiny_model, tiny_task, monkeypatch, step, broken
):
    expected = logits(load(run), tiny_task)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = sorted(run.rglob("*"))
    monkeypatch.setattr(native, broken, fail)
    state = TrainingState({"a": torch.ones(1)}, {})
    with pytest.raises(InputError, match=f"step-0000000{step} cannot be written .*No space left.*Free disk space"):
        save_checkpoint(run, tiny_model, load_recipe(run / "recipe.yaml"), step, state)
    monkeypatch.undo()
    assert sorted(run.rglob("*")) == before
    assert torch.equal(logits(load(run), tiny_task), expected)


def test_what_a_killed_process_left_is_never_loaded_and_cleared_by_the_next(run, tiny_model):
    half = run / "checkpoints" / ".step-00000009.abcd"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(run).name == "step-00000004"
    save_checkpoint(run, tiny_model, load_recipe(run / "recipe.yaml"), 10)
    assert not half.exists()


def test_plugins_travel_with_the_checkpoint_even_two_of_one_name(tiny_recipe, tiny_model, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f'"""Plugin {folder}."""\nimport beside\n')
        (tmp_path / folder / "beside.py").write_text(f'"""Beside {folder}."""\n')
    with isolated_registries():
        recipe = load_recipe(tiny_recipe, [f"plugins=[{tmp_path}/one/mine.py, {tmp_path}/two/mine.py, json]"])
        folder = save_checkpoint(tmp_path / "run", tiny_model, recipe, 1)
        shutil.rmtree(tmp_path / "one")
        shutil.rmtree(tmp_path / "two")
        copies = load_recipe(folder / "recipe.yaml").recipe.plugins
    for copy, name in zip(copies, ("one", "two"), strict=False):
        assert Path(copy).read_text().startswith(f'"""Plugin {name}.')
        assert Path(copy).with_name("beside.py").read_text() == f'"""Beside {name}."""\n'
    assert copies[2] == "json" and all(str(folder) in copy for copy in copies[:2])


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("1 / 0\n")])
def test_a_checkpoint_holds_the_plugin_that_was_loaded_whatever_became_of_its_file(
    tiny_recipe, tiny_model, tmp_path, change
):
    plugin = tmp_path / "mine.py"
    plugin.write_text('"""As it was loaded."""\n')
    with isolated_registries():
        recipe = load_recipe(tiny_recipe, [f"plugins=[{plugin}]"])
        change(plugin)
        folder = save_checkpoint(tmp_path / "run", tiny_model, recipe, 1)
        assert (folder / "plugins" / "mine.py").read_text() == '"""As it was loaded."""\n'
        assert load_recipe(folder / "recipe.yaml").recipe.plugins == [str(folder / "plugins" / "mine.py")]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alien(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor[..., :1].contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def retyped(*kinds: torch.dtype, first: int = 0):
    """Every floating-point tensor from number `first` on in another type; with several types, in turns."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        for number, (name, value) in enumerate(tensors.items()):
            if number >= first and value.is_floating_point():
                tensors[name] = value.to(kinds[number % len(kinds)])
        save_file(tensors, folder / "model.safetensors")

    return damage


def edited(name: str, key: str, value: object):
    """A value of a JSON file set, at a path of keys."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        *path, last = key.split(".")
        place = data
        for step in path:
            place = place[step]
        place[last] = value
        (folder / name).write_text(json.dumps(data))

    return damage


def piped(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def renamed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"x" * 100_000: torch.zeros(1)}, folder / "model.safetensors")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"
MODEL, FACTS, CONFIG, TOKENIZER = (
    "model.safetensors",
    "checkpoint.json",
    "language_model/config.json",
    "language_model/tokenizer.json",
)
DAMAGE = {
    "deep checkpoint.json": (lambda f: (f / FACTS).write_text("[" * 99_999 + "]" * 99_999), "nested too deep"),
    "an infinite format": (lambda f: (f / FACTS).write_text('{"format": 1e999, "step": 4}'), "its format is inf"),
    "a huge format": (lambda f: (f / FACTS).write_text('{"format": ' + "9" * 5000 + ', "step": 4}'), FACTS),
    "a text as format": (edited(FACTS, "format", "2"), "its format is '2' (str)"),
    "a true step": (edited(FACTS, "step", True), "its step is True (bool)"),
    "a negative step": (edited(FACTS, "step", -1), "its step is -1"),
    "int32 weights": (retyped(torch.int32), "is stored as I32, where the model has a floating-point number"),
    "int8 weights": (retyped(torch.int8), "is stored as I8: quantised weights hold codes in place of values"),
    "one int8 weight": (retyped(torch.int8, first=67), "is stored as I8"),
    "float8 weights": (retyped(torch.float8_e4m3fn), "is stored as F8_E4M3: quantised"),
    "mixed float16 weights": (retyped(torch.float16, first=60), "in several types (60 in float32, 8 in float16"),
    "three types": (retyped(torch.float16, torch.bfloat16, torch.float32), "in several types"),
    "a pointer of git-lfs": (lambda f: (f / MODEL).write_text(LFS), "is a pointer of git-lfs in place of the file"),
    "a pointer as tokenizer": (lambda f: (f / TOKENIZER).write_text(LFS), "Fetch it: git lfs pull"),
    "another file as recipe": (lambda f: shutil.copy(f / "resume.json", f / "recipe.yaml"), "more"),
    "a pipe as recipe": (lambda f: piped(f / "recipe.yaml"), "recipe.yaml is no file but a pipe"),
    "a pipe as tokenizer": (lambda f: piped(f / TOKENIZER), "tokenizer.json is no file but a pipe"),
    "a token with a negative id": (edited(TOKENIZER, "model.vocab.a", -1), "integer `-1`"),
    "a token with a huge id": (
        edited(TOKENIZER, "model.vocab.a", 10**9),
        "has the id 1000000000",
    ),
    "a token of no id": (edited(TOKENIZER, "model.vocab.a", "x"), "language_model"),
    "a million layers": (edited(CONFIG, "num_hidden_layers", 10**6), "num_hidden_layers 1000000 is above the most"),
    "a width of a billion": (edited(CONFIG, "hidden_size", 10**9), "hidden_size 1000000000 is above the most"),
    "no checkpoint.json": (lambda f: (f / "checkpoint.json").unlink(), "checkpoint.json"),
    "cut checkpoint.json": (lambda f: cut(f / "checkpoint.json"), "checkpoint.json"),
    "a step twice": (lambda f: (f / "checkpoint.json").write_text('{"step": 4, "step": 9}'), "'step' stands twice"),
    "a huge step": (edited("checkpoint.json", "step", 10**400), "its step is 1000"),
    "a list": (lambda f: (f / "checkpoint.json").write_text("[]"), "checkpoint.json"),
    "no format": (lambda f: (f / "checkpoint.json").write_text('{"step": 4}'), "checkpoint.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "alien weights": (alien, "model.safetensors"),
    "a name of 100,000 letters": (renamed, "(100,000 characters)"),
    "other shapes": (reshaped, "model.safetensors"),
    "no recipe": (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml"),
    "cut recipe": (lambda f: cut(f / "recipe.yaml"), "recipe.yaml"),
    "no language model": (lambda f: shutil.rmtree(f / "language_model"), "language_model"),
    "no architecture": (lambda f: (f / "language_model" / "config.json").unlink(), "language_model"),
    "cut architecture": (lambda f: cut(f / "language_model" / "config.json"), "language_model"),
    "cut tokenizer": (lambda f: cut(f / "language_model" / "tokenizer.json"), "language_model"),
    "no tokenizer": (lambda f: (f / "language_model" / "tokenizer.json").unlink(), "language_model"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_one_error_that_names_the_file(run, damage, named):
    damage(run / "checkpoints" / "step-00000004")
    with pytest.raises(RunError) as error:
        load(run)
    assert named in str(error.value) and len(str(error.value)) < 1500


def test_a_newer_format_is_refused_with_what_to_do(run):
    file = run / "checkpoints" / "step-00000004" / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(RunError, match=rf"format {FORMAT + 1} is newer than {FORMAT}.*Update vilavt-toolkit"):
        load(run)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(RunError, match="holds no checkpoint"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="holds no checkpoint"):
        load(tmp_path / "file")


def test_mixed_types_load_where_one_is_chosen_or_the_checkpoint_was_written_so(run, tiny_recipe, tiny_task, tmp_path):
    retyped(torch.float16, first=60)(run / "checkpoints" / "step-00000004")
    assert {weight.dtype for weight in load(run, dtype="float32").parameters()} == {torch.float32}
    model = build(tiny_recipe)
    model.vision.backbone.to(torch.float64)
    save_checkpoint(tmp_path / "other", model, load_recipe(tiny_recipe), 1)
    assert {weight.dtype for weight in load(tmp_path / "other").parameters()} == {torch.float32, torch.float64}


def test_a_cut_training_state_is_one_sentence(run):
    folder = run / "checkpoints" / "step-00000004"
    load_training_state(folder)
    for name in ("resume.json", "resume.safetensors"):
        cut(folder / name)
        with pytest.raises(RunError, match="Use another checkpoint"):
            load_training_state(folder)


def test_a_path_that_cannot_be_looked_at_is_one_sentence(tmp_path, monkeypatch):
    for path in (tmp_path / ("x" * 300), "~no-such-user-here/run"):
        with pytest.raises(RunError, match=r"File name too long|home folder that is not known"):
            find_checkpoint(path)

    def fail(*args):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(RunError, match="Permission denied"):
        find_checkpoint(tmp_path)


def test_a_run_in_the_home_folder_is_found(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert find_checkpoint("~/run") == run / "checkpoints" / "step-00000004"
