"""The cost of a stage: parameters by part and seconds per step, in the run's cost.json."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.utils.files import COST_FILE, write_json


class StepTimer(pl.Callback):
    """Times the steps of a fit, without data loading, and writes cost.json into the run's folder when it ends."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._step_seconds: list[float] = []
        self._step_started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, after the batch was loaded."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock. No further wait for the device is needed: the step has waited for its gradient norm."""
        self._step_seconds.append(time.perf_counter() - self._step_started)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write cost.json."""
        if self._step_seconds and trainer.is_global_zero:
            model = cast(StageModule, pl_module).model
            write_json(
                self.run / COST_FILE,
                {"parameters": count_parameters(model), **self._summarise_seconds(), **_describe_machine(pl_module)},
            )

    def _summarise_seconds(self) -> dict[str, Any]:
        # The median, so that the first slow steps, or a machine that was busy for a while, do not count.
        return {"seconds_per_step": statistics.median(self._step_seconds), "steps": len(self._step_seconds)}


def count_parameters(model: VisualChatModel) -> dict[str, int]:
    """Count the parameters of a model's parts, and of the whole as `all`, where those that parts share count once."""
    modules: dict[str, nn.Module] = dict(model.parts()) | {"all": model}
    return {name: sum(weight.numel() for weight in module.parameters()) for name, module in modules.items()}


def _describe_machine(module: LightningModule) -> dict[str, Any]:
    device = module.device
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": device.type, "threads": torch.get_num_threads()}
