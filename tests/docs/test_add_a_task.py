"""The page on data of one's own works as a reader would follow it: its files, its commands, and what they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vilavt_toolkit.cli.app import run
from vilavt_toolkit.testing.isolation import isolated_registries

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-task.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORT = {
    "train": ["train.steps=2", "train.batch_size=4", "train.micro_batch=4", "train.workers=0"],
    "rl": [
        "rl.steps=1",
        "rl.prompts_per_step=2",
        "rl.group_size=2",
        "rl.micro_batch=4",
        "rl.max_new_tokens=8",
        "plugins=[noise.py]",
        "rl.rewards=[{name: noise}]",
    ],
    "eval": ["eval.items=2", "eval.max_new_tokens=8"],
}
# After two steps of training no answer is right, and without any difference there would be nothing to learn.
NOISE = """from vilavt_toolkit.rewards import reward_function


@reward_function("noise")
def noise(sample, trajectory):
    return sum(trajectory.ids) % 7
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder outside the repository with the page's files and the data that they make."""
    path = tmp_path_factory.mktemp("own")
    files = dict(FILE.findall(PAGE))
    assert set(files) == {"make_data.py", "traces.yaml", "questions.yaml"}
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    (path / "noise.py").write_text(NOISE)
    subprocess.run([sys.executable, "make_data.py"], cwd=path, check=True)
    return path


def test_its_commands_run_in_order_and_print_what_it_shows(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with isolated_registries():
        check_commands(capsys)


def check_commands(capsys):
    commands = [line.split() for line in re.findall(r"^    vilavt (.*)$", PAGE, re.MULTILINE)]
    assert [command[0] for command in commands] == ["data"] * 3 + ["train", "eval", "rl", "eval"]
    said = ""
    for command in commands[:-1]:  # the last one repeats an earlier one on another run
        assert run([*command, *SHORT.get(command[0], [])]) == 0, capsys.readouterr().err
        said += capsys.readouterr().out
    # The number of features and the first scene are as on the page.
    shown = re.search(r"^```\n(the first sample as the model.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert shown is not None and shown[1] in said


def test_its_row_is_the_first_of_the_file(folder):
    shown = re.search(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    first = (folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert shown is not None and json.loads(shown[1]) == json.loads(first)


def test_its_code_is_as_tidy_as_the_repositorys(folder):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "make_data.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
