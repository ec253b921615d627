"""Runs that are killed or asked to end at any moment, by real signals to real processes, go on as if never stopped."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]

# A process that has imported everything, and forks a child for each attempt: importing takes longer than the runs.
KEEPER = """
import os, pathlib, random, signal, sys, time, traceback
sys.path[:0] = {paths}
import torch
torch.set_num_threads(1)
from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.training.reinforcement import run as rl_run  # noqa: F401
from vilavt_toolkit.training.supervised import run  # noqa: F401
import transformers.models.llama.modeling_llama, timm, tensorboard  # noqa: F401
load_builtin()


def attempt(arguments):
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            code = cli.run(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def newest(run):
    folder = pathlib.Path(run, "checkpoints")
    names = [p.name for p in folder.iterdir() if p.name.startswith("step-")] if folder.is_dir() else []
    return int(max(names)[5:]) if names else None


def ended(child):
    pid, status = os.waitpid(child, os.WNOHANG)
    return None if pid == 0 else os.waitstatus_to_exitcode(status)


def signalled(arguments, run, when, number):
    '''Send a signal to all processes of a run some time after a step of it; the exit code, and where it was.'''
    at, delay = when
    child, code, until = attempt(arguments), None, time.monotonic() + 120
    while (newest(run) or 0) < at and code is None and time.monotonic() < until:
        code = ended(child)
        time.sleep(0.002)
    if code is None:
        time.sleep(delay)
        os.killpg(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, newest(run)


def waited(arguments):
    return os.waitstatus_to_exitcode(os.waitpid(attempt(arguments), 0)[1])
"""

KILLED = """
import json
arguments, run, moments, whole = json.loads(sys.argv[1])
told = []
for moment in moments:
    resume = ["--resume"] if newest(run) is not None else []
    told.append(signalled([*arguments, *resume], run, moment, signal.SIGKILL))
print(json.dumps([told, waited([*arguments, "--resume"]), waited(whole)]))
"""

ENDED = """
import json
told = [signalled(arguments, run, moment, number) for arguments, run, moment, number in json.loads(sys.argv[1])]
print(json.dumps(told))
"""


def spoken(script: str, *arguments: object) -> tuple[list, str]:
    """Run a script after the keeper's code; what it prints as JSON, and its standard error."""
    code = KEEPER.format(paths=[str(ROOT / "toolkit"), str(ROOT / "components")]) + script
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def stage(command: str, recipe: Path, tiny_run: Path, folder: Path) -> tuple[list[str], Path, int]:
    """A stage's command, its run and its number of optimizer steps; with dropout, so that random numbers count."""
    common = [str(recipe), "train.threads=1", f"run={folder}"]
    if command == "train":
        dropout = "model.language_model.config.attention_dropout=0.2"
        return ["train", *common, "train.steps=14", "train.checkpoint_every=3", dropout], folder, 14
    settings = [
        f"rl.init_from={tiny_run}",
        "rl.inner_epochs=3",
        "rl.steps=4",
        "rl.checkpoint_every=2",
        "rl.micro_batch=3",
    ]
    return ["rl", *common, *settings], folder.with_name(f"{folder.name}-rl"), 12


def assert_same(found: Path, expected: Path, step: int) -> None:
    for name in ("model", "resume"):
        file = f"checkpoints/step-{step:08d}/{name}.safetensors"
        left, right = load_file(found / file), load_file(expected / file)
        assert left.keys() == right.keys()
        assert [key for key in right if not torch.equal(left[key], right[key])] == []


def killed(command: str, recipe: Path, tiny_run: Path, tmp_path: Path, times: int, seed: int) -> None:
    """Kill a stage `times` times at random moments, let it end, and compare it with one that was left alone."""
    draw = random.Random(seed)
    whole, expected, total = stage(command, recipe, tiny_run, tmp_path / "whole")
    arguments, run, _ = stage(command, recipe, tiny_run, tmp_path / "broken")
    steps = sorted(draw.sample(range(1, total - 2), times))
    moments = [(step, draw.random() * 0.15) for step in steps]
    (told, code, whole_code), error = spoken(KILLED, arguments, str(run), moments, whole)
    assert (code, whole_code) == (0, 0), error
    assert [code for code, _ in told].count(-9) >= times - 1, "it was hardly ever killed"
    assert_same(run, expected, total)


@pytest.mark.parametrize("command", ["train", "rl"])
def test_a_run_killed_again_and_again_ends_with_the_weights_of_one_left_alone(rl_recipe, tiny_run, tmp_path, command):
    killed(command, rl_recipe, tiny_run, tmp_path, times=2, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("command", ["train", "rl"])
def test_so_it_does_whenever_it_is_killed(rl_recipe, tiny_run, tmp_path, command, seed):
    killed(command, rl_recipe, tiny_run, tmp_path, times=5, seed=seed)


@pytest.mark.parametrize(
    "sent",
    [
        [("train", signal.SIGTERM), ("rl", signal.SIGHUP)],
        pytest.param([("train", signal.SIGHUP), ("rl", signal.SIGTERM)], marks=pytest.mark.nightly),
    ],
    ids=["once each", "the other way round"],
)
def test_a_group_of_processes_asked_to_end_saves_where_it_is_and_exits_with_143(rl_recipe, tiny_run, tmp_path, sent):
    """As SLURM and systemd end it, with workers that prepare samples, and as a terminal does that is gone."""
    long = {
        "train": ["train.steps=10000", "train.schedule=constant", "train.workers=2"],
        "rl": ["rl.steps=10000", "rl.schedule=constant"],
    }
    asked, runs = [], []
    for command, number in sent:
        arguments, run, _ = stage(command, rl_recipe, tiny_run, tmp_path / number.name)
        asked.append(([*arguments, *long[command]], str(run), (2, 0.1), number))
        runs.append(run)
    told, error = spoken(ENDED, *asked)
    assert [code for code, _ in told] == [143, 143], error
    assert "Traceback" not in error and error.rstrip().endswith("asked to end")
    assert error.replace("\n", " ").count("Go on from it with --resume") == 2
    for run, (_, step) in zip(runs, told, strict=True):
        assert step >= 2 and step == max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())
