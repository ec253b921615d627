"""The training state beyond the weights: it comes back exactly, and never into another optimizer."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.resume import capture_state, restore_state


def optimizer_of(*sizes: int, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(size)) for size in sizes], lr=lr)


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.randn(weight.shape)
    optimizer.step()


def test_optimizer_and_random_numbers_come_back_and_the_recipes_settings_stay():
    optimizer = optimizer_of(3, 2)
    step(optimizer)
    state = capture_state(optimizer, stage=TrainingState({"own": torch.ones(1)}, {"skipped": 2}))
    assert "own" in state.tensors and state.data["skipped"] == 2
    drawn = torch.rand(2).tolist(), random.random(), float(np.random.rand())
    other = optimizer_of(3, 2, lr=0.01)
    restore_state(state, other, "train")
    assert (torch.rand(2).tolist(), random.random(), float(np.random.rand())) == drawn
    assert other.param_groups[0]["lr"] == 0.01
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("section", ["train", "rl"])
def test_the_state_of_another_optimizer_is_refused_with_the_keys_of_its_stage(section):
    optimizer = optimizer_of(3, 2)
    step(optimizer)
    with pytest.raises(RunError, match=rf"training 2 tensors and the recipe trains 1, .*{section}\.freeze"):
        restore_state(capture_state(optimizer), optimizer_of(3), section)
