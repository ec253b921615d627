"""Checkpoints in the background: of their own step to the bit, waited for, told when they fail, whole or not there."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.tensor_files import deal_tensors
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import InputError, TrainingError
from vilavt_toolkit.training import saving
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.world import World

BACKGROUND = ["train.save_in_background=true", "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.steps=5"]


def train(recipe: Path, run: Path, *overrides: str, resume: bool = False) -> Path:
    return run_supervised(load_recipe(recipe, [f"run={run}", *overrides]), resume)


def saved(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def steps_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def slow_writing(monkeypatch) -> list[int]:
    """Let every file of a checkpoint wait until another step was taken; the steps in which files were written."""
    write, step, written = saving.save_file, [0], list[int]()
    end_step = StageModule.end_step

    def end(module: StageModule, *arguments: Any) -> None:
        end_step(module, *arguments)
        step[0] += 1

    def wait(*arguments: Any) -> None:
        begun, until = step[0], time.monotonic() + 1
        # The last steps have none behind them.
        while step[0] == begun and time.monotonic() < until and begun < 4:
            time.sleep(0.005)
        write(*arguments)
        written.append(step[0])

    monkeypatch.setattr(StageModule, "end_step", end)
    monkeypatch.setattr(saving, "save_file", wait)
    return written


@pytest.mark.parametrize("more", [(), ("train.ema=0.75", "model.language_model.config.tie_word_embeddings=true")])
def test_a_checkpoint_in_the_background_is_that_of_its_step_though_training_goes_on(
    _tiny_folder, tmp_path, slow_writing, more
):
    recipe = _tiny_folder / "tiny.yaml"
    run = train(recipe, tmp_path / "background", *BACKGROUND, *more)
    at_once = train(recipe, tmp_path / "at once", *BACKGROUND, "train.save_in_background=false", *more)
    assert slow_writing[0] == 3, "step 2 was written after step 3 was taken"
    assert steps_in(run) == steps_in(at_once) == [f"step-{step:08d}" for step in (2, 4, 5)]
    for step in (2, 4, 5):
        for name in ("model", "resume"):
            found, expected = saved(run, step, name), saved(at_once, step, name)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), (step, name)


def test_a_run_that_goes_on_from_a_checkpoint_in_the_background_ends_as_the_unbroken_one(_tiny_folder, tmp_path):
    recipe = _tiny_folder / "tiny.yaml"
    whole = train(recipe, tmp_path / "whole", "train.checkpoint_every=2")
    short = train(recipe, tmp_path / "short", *BACKGROUND, "train.steps=4")
    (tmp_path / "short" / "checkpoints" / "step-00000004").rename(tmp_path / "gone")
    train(recipe, tmp_path / "short", *BACKGROUND, "train.steps=4", resume=True)
    expected = saved(whole, 4, "resume")
    assert all(torch.equal(value, expected[key]) for key, value in saved(short, 4, "resume").items())


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(28, "No space left on device"), InputError, "step-00000002 cannot be written .*Free disk space"),
        (ValueError("strange"), TrainingError, "step-00000002 is not written .*strange"),
    ],
)
def test_an_error_in_the_background_ends_the_run_with_its_sentence(
    _tiny_folder, tmp_path, monkeypatch, error, kind, told
):
    def fail(*arguments: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise error

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(kind, match=told):
        train(_tiny_folder / "tiny.yaml", tmp_path / "run", *BACKGROUND, "train.steps=50", "train.checkpoint_every=2")
    assert steps_in(tmp_path / "run") == []


def test_an_error_of_a_step_waits_for_the_checkpoint_and_saves_the_last_step(_tiny_folder, tmp_path, slow_writing):
    from vilavt_toolkit.training.supervised.data import TraceDataset

    read, asked = TraceDataset.__getitem__, [0]

    def fail(dataset: Any, index: int) -> Any:
        asked[0] += 1
        # Eight samples make a step.
        if asked[0] > 24:
            raise InputError("this sample cannot be read")
        return read(dataset, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TraceDataset, "__getitem__", fail)
        with pytest.raises(InputError, match="this sample cannot be read"):
            train(_tiny_folder / "tiny.yaml", tmp_path / "run", *BACKGROUND, "train.steps=50")
    assert steps_in(tmp_path / "run") == ["step-00000002", "step-00000003"]
    assert find_checkpoint(tmp_path / "run").name == "step-00000003" and vt.load(tmp_path / "run")


def test_the_best_checkpoint_is_linked_when_it_has_its_place(_tiny_folder, tmp_path):
    validated = ["train.validate_every=1", "train.validate_samples=5", "train.validate_dialogues=0", "task.val_items=6"]
    run = train(_tiny_folder / "tiny.yaml", tmp_path / "run", *BACKGROUND, *validated)
    best = (run / "checkpoints" / "best").resolve()
    assert best.name in steps_in(run) and vt.load(best)


def test_a_process_has_the_tensors_of_one_file_in_memory(tmp_path, monkeypatch):
    weights = {f"weight {number}": torch.full((100,), float(number)) for number in range(9)}
    monkeypatch.setattr(saving, "deal_tensors", partial(deal_tensors, largest=1000))
    references: list[weakref.ref[torch.Tensor]] = []
    alive, names = [], []

    def write(tensors: dict[str, torch.Tensor], file: str, metadata: dict[str, str]) -> None:
        alive.append(sum(reference() is not None for reference in references))
        references.extend(weakref.ref(value) for value in tensors.values())
        names.append(Path(file).name)
        assert all(torch.equal(value, weights[name]) for name, value in tensors.items())

    monkeypatch.setattr(saving, "save_file", write)
    files = saving._collect_files(saving.SavedTensors(weights, {}, True), World(), copies=True)
    saving._Writing(files, tmp_path).run()
    assert names == [f"model-{number:05d}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    assert alive == [0, 0, 0, 0] and len(references) == 9
