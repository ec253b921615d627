"""Runs that are killed or asked to end at any moment, by real signals to real processes, go on as if never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]


class Keeper:
    """A process that has imported everything, which takes longer than the runs, and forks a child for each attempt."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(ROOT / "toolkit"), str(ROOT / "components")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_keeper.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip

    def ask(self, name: str, *arguments: object) -> tuple[Any, str]:
        """What a function of `_keeper.py` returns, and what its attempts wrote on stderr."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        found, error = json.loads(self.process.stdout.readline())
        return found, error


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    kept = Keeper()
    with kept.process:
        yield kept
        assert kept.process.stdin is not None
        kept.process.stdin.close()


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


def kill(keeper: Keeper, stages: tuple[str, Path, Path], tmp_path: Path, times: int, seed: int) -> None:
    """Kill a stage `times` times at random moments, let it end, and compare it with one that was left alone."""
    draw = random.Random(seed)
    whole, expected, total = stage(*stages, tmp_path / "whole")
    arguments, run, _ = stage(*stages, tmp_path / "broken")
    steps = sorted(draw.sample(range(1, total - 2), times))
    moments = [(step, draw.random() * 0.15) for step in steps]
    (told, code, whole_code), error = keeper.ask("kill", arguments, str(run), moments, whole)
    assert (code, whole_code) == (0, 0), error
    assert [code for code, _ in told].count(-9) >= times - 1, "it was hardly ever killed"
    assert_same(run, expected, total)


@pytest.mark.parametrize("command", ["train", "rl"])
def test_a_run_killed_again_and_again_ends_with_the_weights_of_one_left_alone(
    keeper, rl_recipe, tiny_run, tmp_path, command
):
    kill(keeper, (command, rl_recipe, tiny_run), tmp_path, times=2, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("command", ["train", "rl"])
def test_so_it_does_whenever_it_is_killed(keeper, rl_recipe, tiny_run, tmp_path, command, seed):
    kill(keeper, (command, rl_recipe, tiny_run), tmp_path, times=5, seed=seed)


@pytest.mark.parametrize(
    "sent",
    [
        [("train", signal.SIGTERM), ("rl", signal.SIGHUP)],
        pytest.param([("train", signal.SIGHUP), ("rl", signal.SIGTERM)], marks=pytest.mark.nightly),
    ],
    ids=["once each", "the other way round"],
)
def test_a_group_of_processes_asked_to_end_saves_where_it_is_and_exits_with_143(
    keeper, rl_recipe, tiny_run, tmp_path, sent
):
    """As SLURM and systemd end it, with workers that prepare samples, and as a terminal does that is gone."""
    long = {
        "train": ["train.steps=10000", "train.schedule=constant", "train.workers=2"],
        "rl": ["rl.steps=10000", "rl.schedule=constant"],
    }
    for command, number in sent:
        arguments, run, _ = stage(command, rl_recipe, tiny_run, tmp_path / number.name)
        (code, step), error = keeper.ask("send_signal", [*arguments, *long[command]], str(run), (2, 0.1), number)
        assert code == 143, error
        assert "Traceback" not in error and error.rstrip().endswith("asked to end")
        assert error.replace("\n", " ").count("Go on from it with --resume") == 1
        assert step >= 2 and step == max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def test_an_interrupted_run_ends_with_130_and_resumes_bit_for_bit_where_it_was(keeper, tiny_recipe, tmp_path):
    """A real process and a real SIGINT, long before the first checkpoint is due."""
    settings = ["train.schedule=constant", "train.threads=1", "train.checkpoint_every=10000"]
    settings += ["train.preprocess=stream", "train.workers=1"]

    def arguments(run: Path, steps: int) -> list[str]:
        return ["train", str(tiny_recipe), f"run={run}", f"train.steps={steps}", *settings]

    run, whole = tmp_path / "run", tmp_path / "whole"
    # As a terminal does: to the workers too.
    (code, step), error = keeper.ask("send_signal", arguments(run, 10_000), str(run), (0, 0.0), signal.SIGINT)
    assert code == 130 and "Traceback" not in error and error.rstrip().endswith("interrupted"), error
    (saved,) = (run / "checkpoints").iterdir()
    assert str(saved) in error.replace("\n", "") and "--resume" in error
    (_, *codes), error = keeper.ask("kill", arguments(run, step + 1), str(run), [], arguments(whole, step + 1))
    assert codes == [0, 0], error
    assert_same(run, whole, step + 1)
