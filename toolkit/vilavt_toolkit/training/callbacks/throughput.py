"""The speed of training as metrics: tokens and patches per second, waits for data, memory, use of the device."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any, cast

import pytorch_lightning as pl
import torch

from vilavt_toolkit.training.stage import Stage, StageModule
from vilavt_toolkit.training.step_cost import StepCost, TrainingCostCounter, find_peak_rate

_GIB = 2**30
_COMPUTES_IN = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-mixed": torch.float16}
"""The number format of products by precision, where it is not float32."""


class Throughput(pl.Callback):
    """Measures steps from one logged step to the next. Checkpoints and validations between them do not count."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._counter: TrainingCostCounter | None = None
        self._peak_rate: float | None = None
        self._cost = StepCost()
        self._started = self._busy_seconds = self._wait_seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock, after the batch was loaded."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and set the metrics if this step's are logged."""
        self._busy_seconds += time.perf_counter() - self._started
        module = cast(StageModule, pl_module)
        # Only batches of the supervised stage are counted. Reinforcement makes its own while it steps.
        for micro_batch in getattr(batch, "micro_batches", ()):
            if self._counter is None:
                self._counter = TrainingCostCounter(module.model)
            self._cost += self._counter.count(micro_batch)
        self._wait_seconds += getattr(batch, "wait_seconds", 0.0)
        if module.step % self.stage.section.log_every == 0:
            module.log_metrics({**self._describe_speed(trainer, module), **_describe_memory(module.device)})
            self._cost, self._busy_seconds, self._wait_seconds = StepCost(), 0.0, 0.0

    def _describe_speed(self, trainer: pl.Trainer, module: StageModule) -> dict[str, float]:
        if self._counter is None:
            return {}
        seconds = self._busy_seconds + self._wait_seconds
        cost = self._cost
        # Time is that of one process, and the work that of all.
        if trainer.world_size > 1:
            own = torch.tensor([cost.tokens, cost.patches, cost.flops], dtype=torch.float64, device=module.device)
            tokens, patches, flops = cast(Any, trainer.strategy).reduce(own, reduce_op="sum").tolist()
            cost = StepCost(tokens, patches, flops)
        if self._peak_rate is None:
            self._peak_rate = self._find_peak_rate(module)
        return {
            "speed/tokens_per_second": cost.tokens / seconds,
            "speed/patches_per_second": cost.patches / seconds,
            "speed/data_share": self._wait_seconds / seconds,
            "speed/teraflops": cost.flops / seconds / 1e12,
            "speed/mfu": cost.flops / seconds / (self._peak_rate * trainer.world_size),
        }

    def _find_peak_rate(self, module: StageModule) -> float:
        settings = self.stage.recipe.recipe.train
        if settings.peak_tflops is not None:
            return settings.peak_tflops * 1e12
        return find_peak_rate(module.device, _COMPUTES_IN.get(settings.precision, torch.float32))


def _describe_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that was in use so far, in GiB: of the device, or of this process on the CPU."""
    if device.type == "cuda":
        return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / _GIB}
    # The module is missing where there is no such limit.
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # In bytes on macOS, in KiB elsewhere.
        return {"memory/peak_gib": peak * (1 if sys.platform == "darwin" else 1024) / _GIB}
    return {}
