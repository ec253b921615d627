"""Several processes train as one does, agree on everything, end together, and go on in any number."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.tensor_files import list_tensor_files

ROOT = Path(__file__).parents[3]
PACKAGES = [str(ROOT / "toolkit"), str(ROOT / "components")]
EXACT = 1e-6
"""Largest relative difference between sums of the same numbers in another order."""


def run_ranks(runs: dict[str, dict[str, Any]]) -> dict[str, SimpleNamespace]:
    """Run several runs of forked processes, one after the other; the outcome of each by name."""
    script = Path(__file__).with_name("_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(PACKAGES), json.dumps(list(runs.values()))],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: SimpleNamespace(**each) for name, each in zip(runs, found, strict=True)}


class Runs:
    """Runs of the tiny recipe in one folder, all made by one process, and their outcomes by name."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.planned: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, SimpleNamespace] = {}

    def add(self, name: str, size: int, *overrides: str, resume: str = "", **happens: Any) -> None:
        """Plan a run of `size` processes; with `resume` from what the run of that name had saved at its second step."""
        settings = ["train.steps=4", f"train.devices={size}", f"run={self.folder / name}", *overrides]
        if resume:
            happens["copy"] = [str(self.folder / resume), str(self.folder / name), 2]
        options = ["--resume"] if resume else []
        happens.setdefault("gradients", str(self.folder / f"{name}.safetensors"))
        self.planned[name] = {"command": ["train", str(self.recipe), *settings, *options], "size": size, **happens}

    def make(self) -> Runs:
        self.outcomes = run_ranks(self.planned)
        return self


PACKED = ("train.pack_tokens=300", "train.steps=1", "train.checkpoint_every=1")
FSDP2, FEW = "train.strategy=fsdp2", ("train.batch_size=2", "train.steps=1")


@pytest.fixture(scope="module")
def ranks(_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(_tiny_folder / "tiny.yaml", tmp_path_factory.mktemp("ranks"))
    runs.add("one", 1)
    runs.add("replicated", 2, "train.micro_batch=2")
    # Eight samples on three processes, one at a time: three micro-batches on two of them, two on the third.
    runs.add("fsdp2", 3, "train.micro_batch=1", FSDP2)
    runs.add("fsdp2 on one", 1, resume="fsdp2")
    runs.add("stopped", 2, "train.steps=50", signal=[1, signal.SIGTERM])
    # A full disk of another process than the first, in whose files the others have no part.
    background = ("train.save_in_background=true", "train.checkpoint_every=1", "train.steps=9")
    runs.add("fsdp2 full", 2, FSDP2, *background, resume="replicated", full=1, gradients="")
    return runs.make()


@pytest.fixture(scope="module")
def more_ranks(_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(_tiny_folder / "tiny.yaml", tmp_path_factory.mktemp("ranks"))
    dropout = "model.language_model.config.attention_dropout=0.2"
    runs.add("one, few samples", 1, *FEW)
    runs.add("replicated, few samples", 3, *FEW)
    runs.add("fsdp2, few samples", 3, *FEW, FSDP2)
    runs.add("packed", 1, *PACKED)
    runs.add("packed replicated", 2, *PACKED)
    runs.add("packed fsdp2", 2, *PACKED, FSDP2)
    every = ("train.checkpoint_every=1", "train.keep_checkpoints=9", dropout)
    tied = "model.language_model.config.tie_word_embeddings=true"
    runs.add("one, a mean", 1, "train.ema=0.5", tied)
    runs.add("fsdp2, a mean", 2, "train.ema=0.5", tied, FSDP2)
    runs.add("fsdp2, every step", 2, FSDP2, *every)
    runs.add("fsdp2, in the background", 2, FSDP2, *every, "train.save_in_background=true")
    # Each process has two files of a checkpoint: the second of step 2, the first of step 3.
    for name, rank, number in (("first", 0, 3), ("second", 1, 4)):
        settings = [FSDP2, *every, f"train.save_in_background={name == 'second'}".lower()]
        runs.add(f"{name} killed", 2, *settings, killed=[rank, number])
        runs.add(f"{name} killed, resumed", 2, *settings, resume=f"{name} killed")
    runs.add("fsdp2 full at once", 2, FSDP2, dropout, resume="fsdp2, every step", full=1, gradients="")
    for strategy in ("replicated", "fsdp2"):
        chosen = [f"train.strategy={strategy}", dropout]
        averaged = ["train.ema=0.9"]
        runs.add(strategy, 2, *chosen, *averaged)
        runs.add(f"{strategy} resumed", 2, *chosen, *averaged, resume=strategy)
        runs.add(f"{strategy} broken", 2, "train.steps=40", chosen[0], broken=[1, 5])
        runs.add(f"{strategy} on three", 3, *chosen, *averaged, resume=strategy)
    runs.add("full", 2, dropout, "train.ema=0.9", resume="replicated", full=0, gradients="")
    # Five samples and three dialogues, of which the two processes have not the same number.
    validated = ["task.val_items=6", "train.validate_samples=5", "train.validate_dialogues=3", "train.validate_every=1"]
    validated += ["train.micro_batch=1", "train.trackers=[csv]", "train.ema=0.5", "train.steps=2"]
    runs.add("validated", 1, *validated)
    runs.add("validated fsdp2", 2, *validated, FSDP2)
    return runs.make()


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest norm of a difference, as a share of the norm of all gradients of its step."""
    assert found.keys() == expected.keys()
    norms: dict[str, float] = {}
    for name, value in expected.items():
        step = name.split("/")[0]
        norms[step] = (norms.get(step, 0.0) ** 2 + float(value.norm()) ** 2) ** 0.5
    return max(float((found[name] - value).norm()) / norms[name.split("/")[0]] for name, value in expected.items())


def gradients(runs: Runs, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(runs.folder / f"{name}.safetensors-{rank}")


def saved_tensors(run: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint."""
    files = list_tensor_files(find_checkpoint(run), stem)
    return {name: value for file in files for name, value in load_file(file).items()}


def newest_step(run: Path) -> int:
    return int(find_checkpoint(run).name[5:])


@pytest.mark.parametrize(("name", "size"), [("replicated", 2), ("fsdp2", 3)])
def test_loss_and_gradients_of_several_processes_are_those_of_one(ranks, name, size):
    expected = gradients(ranks, "one")
    assert ranks.outcomes["one"].codes == [0] and ranks.outcomes[name].codes == [0] * size, ranks.outcomes[name].told
    first = {key: value for key, value in expected.items() if key.startswith("0/")}
    for rank in range(size):
        found = gradients(ranks, name, rank)
        assert largest_difference({key: found[key] for key in first}, first) < EXACT
        # Rounding grows through Adam from step to step.
        assert largest_difference(found, expected) < 100 * EXACT


def test_the_first_process_says_which_strategy_auto_is_and_why(ranks):
    first, second = ranks.outcomes["replicated"].told
    assert "train.strategy auto is replicated: weights, gradients and the optimizer's state take 0.0 GiB of" in first
    assert "auto is" not in second and "auto is" not in ranks.outcomes["fsdp2"].told[0]


def test_all_processes_hold_the_same_gradients_to_the_bit(ranks):
    first, second = gradients(ranks, "replicated", 0), gradients(ranks, "replicated", 1)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["replicated", "fsdp2"])
def test_a_process_without_a_sample_takes_its_part_of_the_step(more_ranks, strategy):
    name = f"{strategy}, few samples"
    assert more_ranks.outcomes[name].codes == [0, 0, 0], more_ranks.outcomes[name].told
    expected = gradients(more_ranks, "one, few samples")
    for rank in range(3):
        assert largest_difference(gradients(more_ranks, name, rank), expected) < EXACT


@pytest.mark.parametrize("name", ["fsdp2 on one"])
def test_what_three_processes_saved_goes_on_in_one_to_the_same_weights(ranks, name):
    outcome = ranks.outcomes[name]
    assert outcome.codes == [0], outcome.told
    assert "train.devices=1 (was 3)" in outcome.told[0]
    expected = vt.load(ranks.folder / "one").state_dict()
    for key, value in vt.load(ranks.folder / name).state_dict().items():
        assert torch.allclose(value, expected[key], atol=2e-4), key


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["replicated", "fsdp2"])
def test_two_processes_go_on_from_a_stop_to_the_bit_with_random_numbers_of_their_own(more_ranks, strategy):
    outcome = more_ranks.outcomes[f"{strategy} resumed"]
    assert outcome.codes == [0, 0], outcome.told
    assert more_ranks.outcomes[f"{strategy} on three"].codes == [0, 0, 0]
    for name in ("model", "resume"):
        expected = saved_tensors(more_ranks.folder / strategy, name)
        found = saved_tensors(more_ranks.folder / f"{strategy} resumed", name)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(expected["random.torch"], expected["random.rank1.torch"])


def test_a_signal_to_one_process_stops_all_after_the_same_step_which_is_saved(ranks):
    outcome = ranks.outcomes["stopped"]
    assert outcome.codes == [143, 143], outcome.told
    assert newest_step(ranks.folder / "stopped") == 2
    assert "Go on from it with --resume" in outcome.told[0] and "Traceback" not in "".join(outcome.told)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["replicated", "fsdp2"])
def test_a_sample_that_one_process_cannot_read_ends_all_with_its_name_and_the_last_step_saved(more_ranks, strategy):
    outcome = more_ranks.outcomes[f"{strategy} broken"]
    assert outcome.codes == [1, 1], outcome.told
    for text in outcome.told:
        assert "sample 5 cannot be read. Mend it." in text and "Traceback" not in text
    run = more_ranks.folder / f"{strategy} broken"
    assert not (run / "checkpoints").exists() or newest_step(run) >= 1


def require_full_disk(runs: Runs, name: str) -> None:
    """All processes of a run have ended in one sentence, and the checkpoint of step 2 is whole and the newest."""
    outcome = runs.outcomes[name]
    assert outcome.codes == [1, 1], outcome.told
    for text in outcome.told[: 1 if name == "full" else 2]:
        assert text.count("cannot be written") == 1 and "Free disk space" in text, outcome.told
    assert "Traceback" not in "".join(outcome.told)
    assert {path.name for path in (runs.folder / name / "checkpoints").iterdir()} <= {"step-00000001", "step-00000002"}
    assert vt.load(runs.folder / name)


def test_a_full_disk_ends_all_processes_in_a_sentence_and_leaves_the_earlier_checkpoint(ranks):
    require_full_disk(ranks, "fsdp2 full")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["full", "fsdp2 full at once"])
def test_a_full_disk_of_one_process_while_training_waits_ends_all(more_ranks, name):
    require_full_disk(more_ranks, name)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["replicated", "fsdp2"])
def test_two_processes_that_pack_rows_learn_as_one_does(more_ranks, strategy):
    name = f"packed {strategy}"
    assert more_ranks.outcomes[name].codes == [0, 0], more_ranks.outcomes[name].told
    for rank in range(2):
        found, expected = gradients(more_ranks, name, rank), gradients(more_ranks, "packed")
        assert largest_difference(found, expected) < EXACT
        assert abs(float(found["0/loss"] / expected["0/loss"]) - 1) < EXACT


def validations(run: Path) -> list[list[float]]:
    """The metrics of every validation."""
    (file,) = run.glob("logs/csv/*/metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("val/loss")]
    return [[float(row[key]) for key in sorted(row) if key.startswith("val/")] for row in rows]


@pytest.mark.nightly
def test_sharded_weights_are_validated_as_those_of_one_process_by_their_mean(more_ranks):
    outcome = more_ranks.outcomes["validated fsdp2"]
    assert outcome.codes == [0, 0], outcome.told
    found, expected = (validations(more_ranks.folder / name) for name in ("validated fsdp2", "validated"))
    assert len(found) == 2 and len(found[0]) == 4
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert find_checkpoint(more_ranks.folder / "validated fsdp2" / "checkpoints" / "best")


def test_no_process_writes_all_of_a_sharded_checkpoint_and_its_files_are_of_one_size(ranks):
    folder = find_checkpoint(ranks.folder / "fsdp2")
    for stem in ("model", "resume"):
        files = list_tensor_files(folder, stem)
        assert [file.name for file in files] == [f"{stem}-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
        sizes = [file.stat().st_size for file in files]
        assert max(sizes) < sum(sizes) / 2
    expected = vt.load(ranks.folder / "one").state_dict()
    for key, value in vt.load(ranks.folder / "fsdp2").state_dict().items():
        assert torch.allclose(value, expected[key], atol=2e-4), key
    exported = vt.export(ranks.folder / "fsdp2", ranks.folder / "exported", "native")
    assert sorted(path.name for path in exported.glob("*.safetensors*")) == ["model.safetensors"]


@pytest.mark.nightly
def test_the_mean_of_sharded_weights_is_that_of_one_process(more_ranks):
    assert more_ranks.outcomes["fsdp2, a mean"].codes == [0, 0], more_ranks.outcomes["fsdp2, a mean"].told
    for stem, prefix in (("model", ""), ("resume", "ema.newest.")):
        found, expected = (saved_tensors(more_ranks.folder / name, stem) for name in ("fsdp2, a mean", "one, a mean"))
        assert expected.keys() == found.keys() - {"random.rank1.torch"}
        for key, value in expected.items():
            assert not key.startswith(prefix) or torch.allclose(found[key], value, atol=2e-4), key
    mean, newest = (saved_tensors(more_ranks.folder / "fsdp2, a mean", stem) for stem in ("model", "resume"))
    changed = [key for key, value in mean.items() if f"ema.newest.{key}" in newest and value.is_floating_point()]
    assert any((mean[key] - newest[f"ema.newest.{key}"]).abs().max() > 3e-4 for key in changed)


@pytest.mark.nightly
def test_sharded_checkpoints_in_the_background_are_those_of_their_steps(more_ranks):
    runs = [more_ranks.folder / name / "checkpoints" for name in ("fsdp2, every step", "fsdp2, in the background")]
    names = [sorted(path.name for path in run.iterdir()) for run in runs]
    assert names[0] == names[1] == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    for name in names[0]:
        for stem in ("model", "resume"):
            expected, found = (saved_tensors(run / name, stem) for run in runs)
            assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "newest"), [("first", 1), ("second", 2)])
def test_a_process_that_is_killed_while_it_writes_leaves_the_checkpoint_before_from_which_all_goes_on(
    more_ranks, name, newest
):
    rank, killed = ("first", "second").index(name), more_ranks.outcomes[f"{name} killed"]
    assert killed.codes[rank] == -signal.SIGKILL and killed.codes[1 - rank] == 1, killed.told
    assert killed.seconds < 60 and "Traceback" not in "".join(killed.told)
    left = sorted(path.name[:14] for path in (more_ranks.folder / f"{name} killed" / "checkpoints").iterdir())
    assert left == [f".step-0000000{newest + 1}"[:14], *(f"step-{step:08d}"[:14] for step in range(1, newest + 1))]
    resumed = more_ranks.folder / f"{name} killed, resumed"
    assert more_ranks.outcomes[resumed.name].codes == [0, 0], more_ranks.outcomes[resumed.name].told
    assert not list((resumed / "checkpoints").glob(".step-*"))
    for stem in ("model", "resume"):
        found, expected = (saved_tensors(run, stem) for run in (resumed, more_ranks.folder / "fsdp2, every step"))
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a run are found in /proc")
def test_vilavt_train_starts_its_processes_and_ends_all_when_one_is_killed(_tiny_folder, tmp_path):
    code = f"import sys; sys.path[:0] = {PACKAGES}; from vilavt_toolkit.cli import main; main()"
    arguments = [
        "train",
        str(_tiny_folder / "tiny.yaml"),
        "train.devices=2",
        "train.steps=9999",
        f"run={tmp_path}/run",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, env=environment)
    until = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    children = [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(children[1], signal.SIGKILL)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and b"rank 1 was ended by SIGKILL" in told and b"Traceback" not in told
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert vt.load(tmp_path / "run")
