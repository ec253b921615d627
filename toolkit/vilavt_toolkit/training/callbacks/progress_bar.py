"""The progress bar of training: steps, time left, and the logged metrics."""

from __future__ import annotations

import time
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console

from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.utils.progress import progress

_SHOWN_EVERY = 0.5
"""Seconds between looks at the metrics, each of which waits for the device."""
_SAID_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""


class StepBar(ProgressBar):
    """Counts the optimizer steps of a run on stderr; where that is no terminal, a line every half minute."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar = progress(self._console)
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the steps taken before this fit."""
        module = cast(StageModule, pl_module)
        self._bar.add_task("training", total=module.total, completed=module.start, said="")
        self._bar.start()
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        module, now = cast(StageModule, pl_module), time.monotonic()
        task = self._bar.tasks[0]
        self._bar.update(task.id, completed=module.step)
        last = module.step == module.total
        if not last and now - self._last < (_SHOWN_EVERY if self._console.is_terminal else _SAID_EVERY):
            return
        self._last = now
        metrics = self.get_metrics(trainer, pl_module)
        said = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, float))
        self._bar.update(task.id, said=said)
        if not self._console.is_terminal and not last:
            left = f", {task.time_remaining:.0f} s left" if task.time_remaining is not None else ""
            self._console.print(f"training: {module.step}/{module.total} steps, {said}{left}", soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is."""
        self._bar.stop()
