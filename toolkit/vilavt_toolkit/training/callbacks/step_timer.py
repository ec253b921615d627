"""What a stage cost: parameters by part and seconds per step, kept beside its weights."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule, Trainer

from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.utils.files import COST, write_json


class Clock(pl.Callback):
    """Times the steps of a fit, loading left out, and writes `cost.json` into the run's folder when it ends."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._taken: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a step, which has waited for the device by now."""
        self._taken.append(time.perf_counter() - self._began)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the fit cost."""
        if self._taken:
            model = cast(StageModule, pl_module).model
            write_json(self.run / COST, {"parameters": parameters(model), **self._seconds(), **_machine(pl_module)})

    def _seconds(self) -> dict[str, Any]:
        # The middle of them: a machine that did something else for a while does not count.
        return {"seconds_per_step": statistics.median(self._taken), "steps": len(self._taken)}


def parameters(model: VisualChatModel) -> dict[str, int]:
    """Numbers of parameters of a model's parts; what two parts share counts once, in `all`."""
    vision = model.encoder
    parts = {
        "encoder": vision.encoder,
        "modulator": vision.modulators,
        "projector": model.projector,
        "language_model": model.language_model,
        "all": model,
    }
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _machine(module: LightningModule) -> dict[str, Any]:
    device = module.device
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": device.type, "threads": torch.get_num_threads()}
