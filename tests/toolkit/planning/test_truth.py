"""A plan's figures are those that torch measures when the step is really taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.planning.dialogues import Dialogue, invent_dialogues
from vilavt_toolkit.planning.rates import STATED
from vilavt_toolkit.planning.recording import fill_state
from vilavt_toolkit.planning.simulation import build_planned_model, simulate_supervised_step
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.supervised.data import build_step_collator
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainer import make_trainer
from vilavt_toolkit.training.world import World

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


def measure_peak(recipe: CheckedRecipe, dialogues: Sequence[Dialogue]) -> int:
    """Take a real step on the CPU, and return the most bytes that it holds at once."""
    section = replace(recipe.recipe.train, accelerator="cpu")
    model = build_model(recipe, torch.float32)
    apply_memory_settings(model, section)
    module = SupervisedModule(model, section.optimizer.build(), section)
    batch = build_step_collator(model, section)(dialogues)
    measuring = _Measuring()
    trainer = make_trainer(section, World(), logger=False, enable_progress_bar=False, callbacks=[measuring])

    class Loader:
        def __iter__(self) -> Any:
            return iter([batch])

    trainer.fit(module, Loader())
    return measuring.peak()


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
