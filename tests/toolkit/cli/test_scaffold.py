"""A third party's single file, outside the repository, takes part in everything: training, loading, asking."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vilavt_toolkit as vt
from vilavt_toolkit.cli import scaffold
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.modulators import tiny_encoders_only

MODULATOR = '''
"""A shift of the first norm, by the inquiry."""

from dataclasses import dataclass

from torch import nn
from vilavt_toolkit.contracts import Modulator
from vilavt_toolkit.registry import modulators, setting


@dataclass(frozen=True)
class ShiftConfig:
    """Settings of `theirs_shift`."""

    scale: float = setting(1.0, help="how strong the shift is")


@modulators.register("theirs_shift", ShiftConfig)
class Shift(Modulator):
    """Adds what the inquiry says after the first norm."""

    sites = frozenset({"norm1"})

    def __init__(self, config, block, inquiry_width):
        super().__init__()
        self.scale = config.scale
        self.shift = nn.Linear(inquiry_width, block.sites["norm1"])
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    @classmethod
    def tiny(cls):
        return ShiftConfig()

    def modulate(self, site, x, y, inquiry):
        return y + self.scale * inquiry.to_tokens(self.shift(inquiry.pooled)).to(y.dtype)
'''
ROOT = Path(__file__).parents[3]
ROOTS = [str(ROOT / root) for root in ("toolkit", "components")]


@pytest.fixture
def theirs(tiny_recipe, tmp_path, monkeypatch):
    """Their folder: one file of a modulator and a recipe beside it, which inherits from another."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "shift.py").write_text(MODULATOR)
    (folder / "base.yaml").write_text(tiny_recipe.read_text())
    (folder / "mine.yaml").write_text(
        "inherits: base.yaml\nplugins: [./shift.py]\nmodel:\n  modulator: {name: theirs_shift, scale: 0.5}\n"
        "train: {steps: 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    with isolated_registries():
        yield folder


def asked(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a fresh interpreter, which has never seen the plugin."""
    code = f"import sys; sys.path[:0] = {ROOTS!r}; from vilavt_toolkit.cli.app import run; sys.exit(run(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_file_outside_the_repository_trains_loads_and_answers(theirs, tmp_path):
    assert run(["train", str(theirs / "mine.yaml"), "run=theirs/run"]) == 0
    model = vt.load("theirs/run")
    parts = [type(part).__name__ for blocks in model.vision.modulators.values() for part in blocks]
    assert parts == ["Shift", "Shift"] and model.vision.modulators["0"][0].scale == 0.5
    assert any(weight.abs().max() > 0 for weight in model.vision.modulators.parameters()), "it has learned"

    from PIL import Image

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "scene.png")
    (theirs / "shift.py").unlink()
    done = asked(tmp_path, "ask", "theirs/run", "scene.png", "what digit is on the red square?")
    assert done.returncode == 0, done.stderr
    assert "stopped: " in done.stdout, "the checkpoint carries the plugin, so the run answers without the file"


def test_a_plugin_that_is_not_there_is_one_sentence(theirs, capsys):
    (theirs / "shift.py").unlink()
    assert run(["check", str(theirs / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert "shift.py" in error and "Traceback" not in error


KINDS = sorted(set(REGISTRIES) - {"format"})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, list[str]]:
    """What `vilavt new` says of a component of every kind, all written into one folder, by kind."""
    folder = tmp_path_factory.mktemp("written")
    told = {}
    for kind in KINDS:
        component = scaffold.write_component(kind, f"my_{kind}", folder)
        told[kind] = scaffold.describe_next_steps(component)
    return {"folder": [str(folder)], **told}


def test_the_help_of_new_names_every_kind_with_a_template(capsys):
    assert run(["new", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Kind of the component: {', '.join(KINDS)}." in shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_new_writes_keeps_its_contract(written, kind):
    file = Path(written["folder"][0]) / f"test_my_{kind}.py"
    with isolated_registries(), tiny_encoders_only():
        runpy.run_path(str(file))[f"test_my_{kind}_keeps_the_contract_of_its_kind"]()


@pytest.mark.nightly
def test_every_kind_that_new_writes_passes_its_own_test(written):
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=written["folder"][0],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert f"{len(KINDS)} passed" in tested.stdout


def test_what_new_writes_is_tidy_and_typed(written):
    folder = Path(written["folder"][0])
    settings = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["ruff", "check", *settings], ["ruff", "format", "--check", *settings]):
        done = subprocess.run(
            [sys.executable, "-m", *command, str(folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for file in (ROOT / "toolkit" / "vilavt_toolkit" / "cli" / "templates").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 135, f"{file.name} is too long to read at once"


# A check takes a second, and `make nightly` checks all of them.
@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("encoder", "modulator", "reward") else pytest.param(kind, marks=pytest.mark.nightly)
        for kind in KINDS
    ],
)
def test_the_recipe_that_new_prints_is_right(written, kind, capsys, monkeypatch):
    folder = Path(written["folder"][0])
    monkeypatch.chdir(folder)
    lines = written[kind]
    (start,) = [number for number, line in enumerate(lines) if line.startswith("use it: ")]
    recipe = folder / f"my_{kind}.yaml"
    recipe.write_text("\n".join(line.removeprefix("    ") for line in lines[start + 1 : -1]))
    assert lines[-1] == f"check it:  vilavt check {recipe}"
    with isolated_registries():
        assert run(["check", str(recipe)]) == 0
    assert "every key and name is known" in capsys.readouterr().out


def test_the_kinds_without_a_template_say_where_to_start(tmp_path, capsys):
    assert run(["new", "format", "my_format", "--dir", str(tmp_path)]) == 2
    assert "no template of a checkpoint format" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "folder", "hint"),
    [
        ("modulator", "modulators", "column to the table"),
        ("stopping", "stopping", ""),
        ("policy_loss", "policy_losses", ""),
    ],
)
def test_inside_a_checkout_a_component_goes_to_its_place(tmp_path, monkeypatch, capsys, kind, folder, hint):
    package = tmp_path / "components" / "vilavt_components"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.chdir(package)
    assert run(["new", kind, "my_own"]) == 0
    module, test = package / folder / "my_own.py", tmp_path / "tests" / "components" / folder / "test_my_own.py"
    shown = capsys.readouterr().out
    assert "nothing has to be listed" in shown and hint in shown and "plugins" not in shown
    assert module.read_text().startswith('"""The ') and "plugins" not in module.read_text() + test.read_text()
    assert f'check("{kind}", "my_own")' in test.read_text()


def test_the_parts_that_new_writes_train_together_and_answer(written, theirs):
    folder = Path(written["folder"][0])
    parts = {
        "modulator": "{name: my_modulator, hidden_dim: 8}",
        "encoder": "{name: my_encoder, width: 16, depth: 2, heads: 2}",
        "inquiry_encoder": "{name: my_inquiry_encoder, width: 16}",
        "language_model": "{name: my_language_model, width: 32, depth: 1, heads: 2}",
        "projector": "my_projector",
        "dialogue": "{name: my_dialogue, system: ''}",
        "source": "my_source",
        "stopping": "[model_decides, my_stopping]",
    }
    overrides = [f"model.{kind}={part}" for kind, part in parts.items()]
    plugins = [str(folder / f"my_{kind}.py") for kind in (*parts, "task", "optimizer")]
    overrides += ["task={name: my_task, size: 16}", "train.optimizer=my_optimizer", "model.integration=all"]
    overrides += [f"plugins=[{','.join(plugins)}]", "run=theirs/own"]
    (folder / "bare.yaml").write_text("model: {}\ntrain: {steps: 2, batch_size: 4, accelerator: cpu}\n")
    assert run(["train", str(folder / "bare.yaml"), *overrides]) == 0
    model = vt.load("theirs/own")
    assert type(model.vision.modulators["0"][0]).__name__ == "MyModulator"
    answer = vt.ask(np.zeros((64, 64, 3), np.uint8), "what?", model=model, max_new_tokens=8)
    assert answer.why
