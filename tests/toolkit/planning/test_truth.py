"""A plan's figures are those that torch measures when the step is really taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.models.saved_activations import ActivationMover
from vilavt_toolkit.planning.dialogues import Dialogue, invent_dialogues
from vilavt_toolkit.planning.rates import STATED
from vilavt_toolkit.planning.recording import fill_state
from vilavt_toolkit.planning.simulation import build_planned_model, simulate_supervised_step
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.strategies import connect_processes
from vilavt_toolkit.training.supervised.data import build_step_collator
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainer import make_trainer
from vilavt_toolkit.training.world import World

PACKAGES = [str(Path(__file__).parents[3] / name) for name in ("toolkit", "components")]
CPU = replace(STATED["h200"], name="cpu", is_gpu=False)
"""Any rates of a CPU, where optimizers are not fused."""


class _Measuring(pl.Callback):
    """Profiles the allocations of a step, from the state that all steps but the first begin with."""

    def __init__(self) -> None:
        self.held = 0
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        fill_state(optimizer)
        tensors = [*pl_module.parameters(), *pl_module.buffers()]
        tensors += [value for state in optimizer.state.values() for value in state.values()]
        # Of what is sharded this process's part.
        tensors = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
        self.held = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
        self.profiler.start()

    def on_train_batch_end(self, *unused: Any) -> None:
        self.profiler.stop()

    def peak(self) -> int:
        """Return the most bytes at once, what was there before the step included."""
        events = self.profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        most = now = 0
        for event in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return self.held + most


def measure_peak(recipe: CheckedRecipe, dialogues: Sequence[Dialogue], world: World | None = None) -> int:
    """Take a real step on the CPU, as one process of `world`, and return the most bytes that it holds at once."""
    world = world or World()
    section = replace(recipe.recipe.train, accelerator="cpu")
    model = build_model(recipe, torch.float32)
    apply_memory_settings(model, section)
    module = SupervisedModule(model, section.optimizer.build(), section)
    batch = build_step_collator(model, section)(dialogues)
    measuring = _Measuring()
    trainer = make_trainer(section, world, logger=False, enable_progress_bar=False, callbacks=[measuring])

    if world.size > 1:
        connect_processes(trainer.strategy, section)
    module.world = world

    class Loader:
        def __iter__(self) -> Any:
            return iter([batch])

    trainer.fit(module, Loader())
    return measuring.peak()


def test_activations_that_are_moved_away_take_no_memory_of_a_gpu(read_medium, monkeypatch):
    # All tensors of a small model are small.
    monkeypatch.setattr(ActivationMover.__init__, "__defaults__", (1 << 16, ("cuda",)))
    forward = []
    for rates, is_on in ((STATED["h200"], False), (STATED["h200"], True), (CPU, True)):
        recipe = read_medium(f"train.offload_activations={is_on}")
        model = build_planned_model(recipe)
        dialogues = invent_dialogues(model, 600, 4).dialogues
        forward.append(simulate_supervised_step(recipe, model, dialogues, rates).peaks["forward"].bytes)
    real = build_model(recipe, torch.float32)
    (batch,) = build_step_collator(real, recipe.recipe.train)(dialogues).micro_batches
    mover = ActivationMover(real, moves_from=("cpu",))
    with torch.autograd.graph.saved_tensors_hooks(mover.pack, mover.unpack):
        real.run_layers(batch)
    away = forward[0] - forward[1]
    assert 0.5 * forward[0] < away < forward[0]
    # A tensor that is saved twice is copied twice, and takes the GPU's memory once.
    assert away <= mover.moved < 2 * away
    assert forward[2] == forward[0], "nothing moves on a CPU"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.gradient_checkpointing=true"],
        pytest.param(["train.precision=bf16-mixed"], marks=pytest.mark.nightly),
        ["train.freeze=[language_model]"],
        pytest.param(["train.micro_batch=null", "train.pack_tokens=2400"], marks=pytest.mark.nightly),
        ["train.lora={targets: [language_model], rank: 4}"],
    ],
    ids=["plain", "checkpointed", "mixed", "frozen", "packed", "lora"],
)
def test_the_peak_is_the_one_that_torch_measures(read_medium, overrides):
    recipe = read_medium(*overrides)
    model = build_planned_model(recipe)
    planned = invent_dialogues(model, 600, recipe.recipe.train.batch_size)
    simulated = simulate_supervised_step(recipe, model, planned.dialogues, CPU).peak.bytes
    assert simulated == pytest.approx(measure_peak(recipe, planned.dialogues), rel=0.1)


@pytest.mark.nightly
def test_the_peak_of_one_of_two_processes_is_the_one_that_torch_measures(tiny_recipe, medium_overrides):
    runs = [[*medium_overrides, "train.devices=2", f"train.strategy={name}"] for name in ("replicated", "fsdp2")]
    script = Path(__file__).with_name("_measure_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(PACKAGES), str(tiny_recipe), json.dumps(runs), "600"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for overrides, measured in zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        recipe = load_run_recipe(str(tiny_recipe), overrides)
        model = build_planned_model(recipe)
        dialogues = invent_dialogues(model, 600, recipe.recipe.train.batch_size // 2).dialogues
        simulated = simulate_supervised_step(recipe, model, dialogues, CPU, devices=2).peak.bytes
        assert simulated == pytest.approx(measured, rel=0.1), overrides[-1]
