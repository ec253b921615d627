"""Steps in which some, or all, micro-batches use nothing that learns: they add loss and no gradient."""

from __future__ import annotations

import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import TraceTurn
from vilavt_toolkit.training.supervised.data import StepBatch, StepCollator, TraceDataset
from vilavt_toolkit.training.supervised.module import SupervisedModule


class PartlyText:
    """A task of which the first samples are texts without an image."""

    def __init__(self, task, texts: int) -> None:
        self.task, self.texts = task, texts

    def sample(self, split, index):
        sample = self.task.sample(split, index)
        if index >= self.texts:
            return sample
        return dataclasses.replace(sample, originals=(), trace=(TraceTurn("so", answer="yes"),))


class Observed(SupervisedModule):
    """Keeps what it logs, and the gradients of the last step before they are clipped."""

    def on_before_optimizer_step(self, optimizer):
        named = self.model.named_parameters()
        self.grads = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
        super().on_before_optimizer_step(optimizer)

    def log_metrics(self, metrics, in_bar=()):
        self.logged = {**getattr(self, "logged", {}), **{name: float(value) for name, value in metrics.items()}}


def stepped(recipe, texts: int, micro: int, *overrides: str, plugins=()) -> Observed:
    """A module after one step on four samples, of which some are texts."""
    sections, model = load_recipe(recipe, overrides).recipe, build(recipe, overrides)
    module = Observed(model, sections.train.optimizer.build(), sections.train)
    dataset = TraceDataset(model, PartlyText(sections.task.build(), texts), 4)
    batch: StepBatch = StepCollator(micro, model.language_model)([dataset[index] for index in range(4)])
    trainer = pl.Trainer(
        accelerator="cpu", plugins=list(plugins), max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return module


EYES = "train.freeze=[language_model]"
MODULATORS = "train.freeze=[encoder,projector,language_model]"
PROJECTOR = "train.freeze=[encoder,modulator,inquiry_encoder,language_model]"


@pytest.mark.parametrize("freeze", [EYES, MODULATORS, PROJECTOR])
def test_a_micro_batch_that_uses_nothing_that_learns_adds_loss_and_no_gradient(tiny_recipe, freeze):
    whole, split = (stepped(tiny_recipe, 2, micro, freeze) for micro in (4, 1))
    assert split.grads.keys() == whole.grads.keys() and whole.grads
    for name, expected in whole.grads.items():
        assert (split.grads[name] - expected).abs().max() < 1e-4 * max(1e-2, expected.abs().max()), name
    assert split.logged["loss"] == pytest.approx(whole.logged["loss"], rel=1e-5)


@pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "with a loss scaler"])
def test_a_step_that_uses_nothing_that_learns_is_taken_and_changes_nothing(tiny_recipe, is_scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if is_scaled else []
    module = stepped(tiny_recipe, 4, 2, MODULATORS, plugins=plugins)
    assert module.step == 1 and module.skipped_steps == 0 and module.grads == {}
    assert module.logged["loss"] > 0 and module.logged["gradient_norm"] == 0
    before = build(tiny_recipe)
    assert all(torch.equal(a, b) for a, b in zip(module.model.parameters(), before.parameters(), strict=True))
