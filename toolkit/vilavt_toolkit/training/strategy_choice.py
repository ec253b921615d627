"""`train.strategy: auto`: the strategy of a run of several devices, by what its state takes of their memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS, TrainSection
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import VilavtError
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.trainable import build_optimizer, select_trained, trainable_parameters
from vilavt_toolkit.training.world import World
from vilavt_toolkit.utils.host_memory import measure_host_memory

log = logging.getLogger(__name__)

_STATE_SHARE = 0.7
"""Share of a device's memory that the state may take under `replicated`. The rest is left for activations."""
_GIB = 2**30
_TRIED_NUMBERS = 64 * 1024
"""Numbers of the weight of which one step is taken to see what an optimizer keeps."""
_ADAM_BYTES = 8.0
"""Two moments in float32, where an optimizer cannot be tried here."""


@dataclass(frozen=True)
class StateSize:
    """Bytes of what training keeps of a model all the time."""

    weights: int
    """In their own type, and as autocast's copies."""
    gradients: int
    optimizer: int
    """Moments, and a master copy or a mean of the weights."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def resolve_strategy(recipe: CheckedRecipe, world: World) -> CheckedRecipe:
    """Return a recipe with a strategy in the place of `auto` where several devices train, and say which and why."""
    if world.size == 1 or recipe.recipe.train.strategy != "auto":
        return recipe
    # Settings of the strategy are not settings of the run: a resumed one may have other devices.
    strategy, reason = choose_strategy(recipe, measure_device_memory(recipe.recipe.train))
    if world.is_first:
        log.warning("train.strategy auto is %s: %s.", strategy, reason)
    return with_strategy(recipe, strategy)


def with_strategy(recipe: CheckedRecipe, strategy: str) -> CheckedRecipe:
    """Return a recipe with another strategy; what it says itself stays."""
    return replace(recipe, recipe=replace(recipe.recipe, train=replace(recipe.recipe.train, strategy=strategy)))


def choose_strategy(recipe: CheckedRecipe, memory: int) -> tuple[str, str]:
    """Return `replicated` if the state fits into so many bytes of a device, or else `fsdp2`; and the reason."""
    section = recipe.recipe.train
    model = assemble_model(recipe.recipe.model, recipe.where, filled=frozenset(PARTS_WITH_WEIGHTS))
    state = measure_state(model, section)
    reason = f"weights, gradients and the optimizer's state take {state.total / _GIB:.1f} GiB"
    if not memory:
        return "replicated", f"{reason}, and this machine does not say how much memory it has"
    reason = f"{reason} of the {memory / _GIB:.1f} GiB of a device"
    if state.total <= _STATE_SHARE * memory:
        return "replicated", reason
    try:
        # The section itself refuses what excludes sharding.
        replace(section, strategy="fsdp2")
    except ValueError as error:
        return "replicated", f"{reason}, and fsdp2 is not possible ({str(error).rstrip('.')})"
    return "fsdp2", f"{reason}, which should be {_STATE_SHARE:.0%} at most"


def measure_state(model: VisualChatModel, section: TrainSection) -> StateSize:
    """Return what training keeps of a model, whose weights need no memory; adapters are put on it, others frozen."""
    select_trained(model, section)
    dtype = torch.bfloat16 if section.precision == "bf16-true" else torch.float32
    trained = sum(weight.numel() for _, weight in trainable_parameters(model))
    frozen = sum(weight.numel() for weight in model.parameters()) - trained
    weights = trained * dtype.itemsize + frozen * (2 if section.frozen_dtype == "bfloat16" else dtype.itemsize)
    if section.precision in ("bf16-mixed", "16-mixed"):
        weights += 2 * (trained + (frozen if section.frozen_dtype == "same" else 0))
    kept = measure_optimizer(section.optimizer.build(), dtype) + (4.0 if section.ema is not None else 0.0)
    return StateSize(weights, trained * dtype.itemsize, int(trained * kept))


def measure_optimizer(optimizer: Optimizer, dtype: torch.dtype) -> float:
    """Return the bytes that an optimizer keeps of a number, by a step of one weight of a type."""
    weight = nn.Parameter(torch.zeros(_TRIED_NUMBERS // 64, 64, dtype=dtype))
    weight.grad = torch.zeros_like(weight)
    try:
        built = build_optimizer(optimizer, [("weight", weight)])
        built.step()
    # Optimizers of other people, some of which run on a GPU alone, refuse in errors of their own.
    except (VilavtError, RuntimeError, NotImplementedError, TypeError, ImportError):
        return _ADAM_BYTES
    kept = [value for values in built.state.values() for value in values.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in kept) / _TRIED_NUMBERS


def measure_device_memory(section: TrainSection) -> int:
    """Return the bytes of the smallest device of this machine; on the CPU each has its share of the memory."""
    if section.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        count = min(section.devices, torch.cuda.device_count())
        return min(torch.cuda.get_device_properties(index).total_memory for index in range(count))
    return measure_host_memory() // section.devices
