"""The claims that every registered optimizer must meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import MissingPackage
from vilavt_toolkit.registry import optimizers
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_for_every_instance = bench.for_every_instance(optimizers)


def _build(instance: Instance[Optimizer], module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a module; skip the claim where the optimizer's software is not installed."""
    try:
        return instance.build().build(module.named_parameters())
    except MissingPackage as error:
        pytest.skip(str(error))


def _train(instance: Instance[Optimizer], steps: int = 30) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    optimizer = _build(instance, module)
    x = torch.randn(16, 4)
    # A regression that AdamW or SGD solve at any sensible learning rate, with a norm as in real models.
    losses = []
    for _ in range(steps):
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        bench.backpropagate(loss)
        optimizer.step()
        losses.append(loss.item())
    return module, optimizer, losses


@_for_every_instance
def lowers_a_loss(instance: Instance[Optimizer]) -> None:
    """Thirty steps lower a small regression's loss."""
    _, _, losses = _train(instance)
    assert losses[-1] < losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


@_for_every_instance
def takes_every_trainable_parameter_once(instance: Instance[Optimizer]) -> None:
    """Every trainable parameter is in exactly one group, and no frozen one is in any."""
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    module[2].requires_grad_(False)
    built = _build(instance, module)
    # By identity: parameters have no order, and == compares their values.
    held: list[Any] = [id(parameter) for group in built.param_groups for parameter in group["params"]]
    expected = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    assert sorted(held) == sorted(expected), f"{len(held)} parameters are held, {len(expected)} are trainable"


@_for_every_instance
def keeps_its_state(instance: Instance[Optimizer]) -> None:
    """Its state dict loads into a new one."""
    module, optimizer, _ = _train(instance, steps=2)
    other = _build(instance, module)
    other.load_state_dict(optimizer.state_dict())
    assert len(other.state) == len(optimizer.state), "state is lost on loading"


CLAIMS = (
    lowers_a_loss,
    takes_every_trainable_parameter_once,
    keeps_its_state,
)
