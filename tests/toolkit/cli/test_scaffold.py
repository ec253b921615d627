"""A third party's single file, outside the repository, takes part in everything: training, loading, asking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vilavt_toolkit as vt
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.registry import isolated

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
ROOTS = [str(Path(__file__).parents[3] / root) for root in ("toolkit", "components")]


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
    with isolated():
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
    parts = [type(part).__name__ for blocks in model.encoder.modulators.values() for part in blocks]
    assert parts == ["Shift", "Shift"] and model.encoder.modulators["0"][0].scale == 0.5
    assert any(weight.abs().max() > 0 for weight in model.encoder.modulators.parameters()), "it has learned"

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


def test_the_modulator_that_new_writes_passes_its_test_trains_and_answers(theirs, tmp_path):
    assert run(["new", "modulator", "my_gate", "--dir", str(theirs)]) == 0
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_gate.py"],
        cwd=theirs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout
    override = "model.modulator={name: my_gate, hidden_dim: 8}"
    assert run(["train", str(theirs / "mine.yaml"), "plugins=[theirs/my_gate.py]", override, "run=theirs/gated"]) == 0
    model = vt.load("theirs/gated")
    assert type(model.encoder.modulators["0"][0]).__name__ == "MyGate"
    answer = vt.ask(np.zeros((64, 64, 3), np.uint8), "what?", model=model, max_new_tokens=8)
    assert answer.why
