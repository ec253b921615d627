"""Records what a simulated step does: memory by phase and kind, and costs by phase and micro-batch."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vilavt_toolkit.planning.memory import MemoryTracker
from vilavt_toolkit.planning.operations import Cost, measure_operation
from vilavt_toolkit.planning.rates import DeviceRates
from vilavt_toolkit.planning.shapes import list_tensors
from vilavt_toolkit.training.stage import StageModule

FORWARD, BACKWARD, STEP, ROLLOUT = "forward", "backward", "optimizer step", "rollout"
_OURS = ("vilavt_toolkit", "vilavt_components")
_HIDDEN_WAITS = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")


class StepRecorder:
    """Observes a run on shapes; `micro_batch` is the number of the one that is computed."""

    def __init__(self, vocab_size: int, rates: DeviceRates) -> None:
        self.memory = MemoryTracker(vocab_size)
        self.costs: dict[tuple[str, int], Cost] = defaultdict(Cost)
        """Costs by phase and micro-batch."""
        self.micro_batch = 0
        self.rates = rates

    def observe(
        self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], inputs: list[Tensor], result: Any
    ) -> None:
        """Take note of an operation that has been run; `inputs` are the tensors in its arguments and options."""
        if self.memory.is_paused:
            return
        outputs = list_tensors(result)
        self.memory.observe(operation, inputs, outputs)
        cost = measure_operation(operation, arguments, options, inputs, outputs, result, self.rates)
        if cost is not None:
            self.costs[self.memory.phase, self.micro_batch].add(cost)
        if operation._schema.name.removeprefix("aten::") in _HIDDEN_WAITS:
            self.observe_wait(inputs[0])

    def observe_wait(self, tensor: Tensor) -> None:
        """Take note that the program asked for a number of a tensor on the device."""
        # What a program makes on the CPU it does not wait for.
        if self.memory.is_on_device(tensor):
            self.costs[self.memory.phase, self.micro_batch].waits[_find_place()] += 1

    def begin_phase(self, name: str) -> None:
        """Count from here on for another phase."""
        self.memory.begin_phase(name)

    def begin_micro_batch(self, number: int) -> None:
        """Count from here on for another micro-batch."""
        self.micro_batch = number
        if number >= 0:
            self.begin_phase(FORWARD)

    def forget_cost(self, number: int) -> None:
        """Forget what a micro-batch has taken in this phase so far."""
        self.costs.pop((self.memory.phase, number), None)

    def mark_weights(self, model: nn.Module) -> None:
        """Say which storages are weights."""
        for weight in model.parameters():
            self.memory.mark("weights" if weight.requires_grad else "frozen weights", weight.detach())
        self.memory.mark("frozen weights", list(model.buffers()))


class RecordingCallback(pl.Callback):
    """Tells a recorder the phases of Lightning's steps, which storages are gradients and moments, and when to begin."""

    def __init__(self, recorder: StepRecorder, fuse_optimizers: bool) -> None:
        self._recorder = recorder
        self._fuses = fuse_optimizers

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the optimizer the state that it has from the second step on, and begin to count."""
        recorder = self._recorder
        recorder.mark_weights(pl_module)
        for optimizer in trainer.optimizers:
            if self._fuses:
                _fuse(optimizer)
            fill_state(optimizer)
            recorder.memory.mark("moments", [list(state.values()) for state in optimizer.state.values()])
        for weight in pl_module.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._mark_gradient)  # type: ignore[no-untyped-call]
        recorder.costs.clear()
        recorder.begin_phase(FORWARD)
        recorder.memory.forget_peaks()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the batch, which a GPU would hold."""
        for micro_batch in getattr(batch, "micro_batches", ()):
            self._recorder.memory.mark_on_device(list(vars(micro_batch).values()))

    def _mark_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self._recorder.memory.mark("gradients", weight.grad)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Begin a backward pass."""
        self._recorder.begin_phase(BACKWARD)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the micro-batch."""
        for weight in pl_module.parameters():
            self._mark_gradient(weight)
        self._recorder.micro_batch += 1
        self._recorder.begin_phase(FORWARD)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin the optimizer's step, the clipping of its gradient included."""
        self._recorder.begin_phase(STEP)


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of torch update all weights in one kernel, as it does on a GPU."""
    for group in optimizer.param_groups:
        if "fused" in group:
            group |= {"fused": True, "foreach": False}


def hold_gradients(module: StageModule, recorder: StepRecorder) -> None:
    """Let a module's steps begin with gradients in memory, as all its micro-batches but the first do."""
    begin_step = module.begin_step

    def begin_with_gradients() -> Any:
        optimizer = begin_step()
        for weight in module.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
                recorder.memory.mark("gradients", weight.grad)
        return optimizer

    module.begin_step = begin_with_gradients  # type: ignore[method-assign]


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its state by a step without effect on anything that is counted."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()


def _find_place() -> str:
    """Return the innermost line of ours that runs, as `training/stage.py:164`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for package in _OURS:
            if f"{package}/" in name and f"{package}/planning/" not in name:
                return f"{name.split(f'{package}/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"
