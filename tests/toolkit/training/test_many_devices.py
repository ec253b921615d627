"""Several processes train as one does, agree on everything, end together, and go on in any number."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.native import find_checkpoint

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


@pytest.fixture(scope="module")
def ranks(_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All runs of this file, made in one process; their outcomes, their folder, and `runs`, which named them."""
    folder = tmp_path_factory.mktemp("ranks")

    def run(name: str, size: int, *overrides: str, resume: str = "", step: int = 0, **happens: Any) -> dict[str, Any]:
        settings = ["train.steps=4", f"train.devices={size}", f"run={folder / name}", *overrides]
        if resume:
            happens["copy"] = [str(folder / resume), str(folder / name), step]
        options = ["--resume"] if resume else []
        command = ["train", str(_tiny_folder / "tiny.yaml"), *settings, *options]
        return {"command": command, "size": size, "gradients": str(folder / f"{name}.safetensors"), **happens}

    dropout = "model.language_model.config.attention_dropout=0.2"
    runs = {
        "one": run("one", 1),
        "two": run("two", 2, "train.micro_batch=2"),
        "resumed on one": run("resumed on one", 1, resume="two", step=2),
        "resumed on three": run("resumed on three", 3, resume="two", step=2),
        "more ranks than samples": run("few", 3, "train.batch_size=2", "train.steps=1"),
        "few on one": run("few on one", 1, "train.batch_size=2", "train.steps=1"),
        "dropout": run("dropout", 2, dropout),
        "dropout resumed": run("dropout resumed", 2, dropout, resume="dropout", step=2),
        "stopped": run("stopped", 2, "train.steps=50", signal=[1, signal.SIGTERM]),
        "broken": run("broken", 2, "train.steps=40", broken=[1, 5]),
        "full": {**run("full", 2, resume="two", step=2, full=0), "gradients": ""},
    }
    return SimpleNamespace(folder=folder, outcomes=run_ranks(runs))


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest norm of a difference, as a share of the norm of all gradients of its step."""
    assert found.keys() == expected.keys()
    norms: dict[str, float] = {}
    for name, value in expected.items():
        step = name.split("/")[0]
        norms[step] = (norms.get(step, 0.0) ** 2 + float(value.norm()) ** 2) ** 0.5
    return max(float((found[name] - value).norm()) / norms[name.split("/")[0]] for name, value in expected.items())


def gradients(ranks: SimpleNamespace, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(ranks.folder / f"{name}.safetensors-{rank}")


def newest_step(run: Path) -> int:
    return int(find_checkpoint(run).name[5:])


def test_loss_and_gradients_of_two_ranks_are_those_of_one_process(ranks):
    expected = gradients(ranks, "one")
    assert ranks.outcomes["one"].codes == [0] and ranks.outcomes["two"].codes == [0, 0], ranks.outcomes["two"].told
    first = {name: value for name, value in expected.items() if name.startswith("0/")}
    for rank in range(2):
        found = gradients(ranks, "two", rank)
        assert largest_difference({name: found[name] for name in first}, first) < EXACT
        # Rounding grows through Adam from step to step.
        assert largest_difference(found, expected) < 100 * EXACT


def test_both_ranks_hold_the_same_gradients_to_the_bit(ranks):
    first, second = gradients(ranks, "two", 0), gradients(ranks, "two", 1)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_rank_without_a_sample_takes_its_part_of_the_step(ranks):
    assert ranks.outcomes["more ranks than samples"].codes == [0, 0, 0]
    expected = gradients(ranks, "few on one")
    for rank in range(3):
        assert largest_difference(gradients(ranks, "few", rank), expected) < EXACT


@pytest.mark.parametrize(("name", "size"), [("resumed on one", 1), ("resumed on three", 3)])
def test_what_two_ranks_saved_goes_on_in_any_number(ranks, name, size):
    outcome = ranks.outcomes[name]
    assert outcome.codes == [0] * size, outcome.told
    assert f"train.devices={size} (was 2)" in outcome.told[0]
    expected = vt.load(ranks.folder / "one").state_dict()
    for key, value in vt.load(ranks.folder / name).state_dict().items():
        assert torch.allclose(value, expected[key], atol=2e-4), key


def test_two_ranks_go_on_from_a_stop_to_the_bit_with_random_numbers_of_their_own(ranks):
    assert ranks.outcomes["dropout resumed"].codes == [0, 0]
    for name in ("model", "resume"):
        file = f"{name}.safetensors"
        expected = load_file(find_checkpoint(ranks.folder / "dropout") / file)
        found = load_file(find_checkpoint(ranks.folder / "dropout resumed") / file)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(expected["random.torch"], expected["random.rank1.torch"])


def test_a_signal_to_one_rank_stops_all_after_the_same_step_which_is_saved(ranks):
    outcome = ranks.outcomes["stopped"]
    assert outcome.codes == [143, 143], outcome.told
    assert newest_step(ranks.folder / "stopped") == 2
    assert "Go on from it with --resume" in outcome.told[0] and "Traceback" not in "".join(outcome.told)


def test_a_sample_that_one_rank_cannot_read_ends_all_with_its_name_and_the_last_step_saved(ranks):
    outcome = ranks.outcomes["broken"]
    assert outcome.codes == [1, 1], outcome.told
    for text in outcome.told:
        assert "sample 5 cannot be read. Mend it." in text and "Traceback" not in text
    assert newest_step(ranks.folder / "broken") >= 1 or not (ranks.folder / "broken" / "checkpoints").exists()


def test_a_full_disk_ends_all_ranks_in_a_sentence_and_leaves_the_earlier_checkpoint(ranks):
    outcome = ranks.outcomes["full"]
    assert outcome.codes == [1, 1], outcome.told
    assert "cannot be written" in outcome.told[0] and "Traceback" not in "".join(outcome.told)
    assert [path.name for path in (ranks.folder / "full" / "checkpoints").iterdir()] == ["step-00000002"]
    assert vt.load(ranks.folder / "full")
