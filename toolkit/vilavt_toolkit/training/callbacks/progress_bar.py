"""The progress bar of training: steps, time left, and metrics."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console

from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.utils.progress import make_progress_bar

_SECONDS_PER_UPDATE = 0.5
"""Between updates of the metrics on a terminal. Each reads values from the device, which waits for it."""
_SECONDS_PER_LINE = 30.0
"""Between lines where the output is not a terminal."""


class StepProgressBar(ProgressBar):
    """Shows the optimizer steps of a run on stderr; if that is not a terminal, prints a line every half minute."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar = make_progress_bar(self._console)
        self._last = 0.0
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this in every process but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the steps taken before this fit."""
        module = cast(StageModule, pl_module)
        self._bar.add_task("training", total=module.total_steps, completed=module.start_step, note="")
        if self._is_enabled:
            with suppress(OSError):
                self._bar.start()
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, and update the metrics if the last update was long enough ago."""
        if not self._is_enabled:
            return
        # A terminal that is gone, or a log on a full disk, must not end a run: its signal asks for a checkpoint.
        with suppress(OSError):
            self._show_step(trainer, cast(StageModule, pl_module))

    def _show_step(self, trainer: Trainer, module: StageModule) -> None:
        task, now = self._bar.tasks[0], time.monotonic()
        self._bar.update(task.id, completed=module.step)
        # The last step is always shown, so that a finished run does not end on old numbers.
        last = module.step == module.total_steps
        if not last and now - self._last < (_SECONDS_PER_UPDATE if self._console.is_terminal else _SECONDS_PER_LINE):
            return
        self._last = now
        metrics = self.get_metrics(trainer, module)
        said = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, float))
        self._bar.update(task.id, note=said)
        if not self._console.is_terminal and not last:
            left = f", {task.time_remaining:.0f} s left" if task.time_remaining is not None else ""
            self._console.print(f"training: {module.step}/{module.total_steps} steps, {said}{left}", soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the bar, which stays visible."""
        with suppress(OSError):
            self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the bar, which stays visible."""
        with suppress(OSError):
            self._bar.stop()
