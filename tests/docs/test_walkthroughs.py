"""The files of the walk-through pages work as a reader would write them: in a folder of their own."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

import vilavt_toolkit as vt
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing import check_encoder
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.modulators import tiny_encoders_only
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"(?<!`:\n\n)^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = {"add-a-modulator": "spotlight", "add-an-encoder": "mini_vit"}
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORT = ["train.steps=1", "train.batch_size=4", "train.micro_batch=4", "train.preprocess=stream", "train.workers=0"]


@pytest.fixture(params=PAGES)
def written(request, tmp_path, monkeypatch):
    """A folder outside the repository with the files of one page, and the component's name."""
    page = (ROOT / "docs" / f"{request.param}.md").read_text(encoding="utf-8")
    name = PAGES[request.param]
    for file, text in FILE.findall(page):
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.py", f"test_{name}.py", f"{name}.yaml"}
    monkeypatch.chdir(tmp_path)
    with isolated_registries():
        yield tmp_path, name


def test_its_tests_pass_here(written):
    _, name = written
    tests = [each for key, each in runpy.run_path(f"test_{name}.py").items() if key.startswith("test_")]
    assert tests
    with tiny_encoders_only():
        for test in tests:
            test()


@pytest.mark.nightly
def test_its_tests_pass(written):
    folder, name = written
    roots = os.pathsep.join(str(ROOT / root) for root in ("toolkit", "components"))
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name}.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "passed" in tested.stdout


def test_its_recipe_is_checked_trained_loaded_and_asked(written, capsys):
    folder, name = written
    assert run(["check", f"{name}.yaml"]) == 0
    assert name in capsys.readouterr().out
    assert run(["train", f"{name}.yaml", "task.train_items=64", *SHORT]) == 0
    (folder / f"{name}.py").unlink()
    answer = vt.ask(np.zeros((256, 256, 3), np.uint8), "what?", model=vt.load(f"runs/{name}"), max_new_tokens=4)
    assert answer.why


def test_what_else_it_shows_runs(written):
    from PIL import Image

    folder, name = written
    Image.fromarray(np.zeros((128, 160, 3), np.uint8)).save(folder / "scene.png")
    page = next(page for page, of in PAGES.items() if of == name)
    for snippet in SNIPPET.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        assert "import vilavt_toolkit as vt" in snippet
        exec(compile(snippet, page, "exec"), {})


def test_its_code_is_as_tidy_as_the_repositorys(written):
    folder, _ = written
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_parts_of_rotary_class_tokens_and_merging_make_an_encoder(monkeypatch):
    page = (ROOT / "docs" / "add-an-encoder.md").read_text(encoding="utf-8")
    section = page.split("## Rotary positions, class tokens, merging")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    # The page shows the methods one by one, at the margin, as the formatter wants them. They belong below the class.
    functions = [block for block in blocks if block.startswith("def _")]
    parts = [b if b.startswith("class") else textwrap.indent(b, "    ") for b in blocks if b not in functions]
    plain = dict(FILE.findall(page))["mini_vit.py"]
    even = plain.replace("self.patch, budget", "2 * self.patch, budget")
    assert even != plain
    source = "\n".join([even, "from dataclasses import replace", *functions, *parts])
    with isolated_registries():
        # A dataclass looks for its module by name.
        module = types.ModuleType("rotary_vit")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, "add-an-encoder.md", "exec"), module.__dict__)
        encoders.register("rotary_vit", module.MiniViTConfig)(module.RotaryViT)
        check_encoder("rotary_vit")
        encoder = module.RotaryViT(module.RotaryViT.tiny())
        joint = DynamicEncoder(encoder, [(JointAttention, NoSettings())], "all", WordInquiryEncoder())
        views = example_views(encoder)[:2]
        features, grids = joint.encode(views, [0, 0], [joint.tokenize("a b")])
    assert [np.multiply(grid, 2).tolist() for grid in grids] == [list(view.size) for view in views]
    assert features.isfinite().all()
