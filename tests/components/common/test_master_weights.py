"""Weights in bfloat16 learn what weights in float32 learn: with a master copy, and by stochastic rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vilavt_components.common import master_weights
from vilavt_components.common.master_weights import Float32Updates, add_remainder, cut_remainder, round_at_random
from vilavt_components.optimizers.adamw import AdamW, AdamWConfig
from vilavt_toolkit.training.resume import capture_state, restore_state


@given(st.floats(-(2.0**120), 2.0**120, width=32), st.integers(0, 2**31))
@settings(deadline=None)
def test_a_number_is_rounded_to_one_of_its_two_neighbours(value, seed):
    torch.manual_seed(seed)
    exact = torch.full((64,), value)
    found = round_at_random(exact).float()
    # Less than a step of bfloat16 away, which is 2^-7 of a number at most. Tiny numbers have steps of 2^-133.
    assert ((found - exact).abs() <= exact.abs() * 2.0**-7 + 2.0**-133).all()
    assert len(found.unique()) <= 2
    if exact.bfloat16().float().equal(exact):
        assert found.equal(exact)


def test_the_mean_of_random_rounding_is_the_number_itself():
    torch.manual_seed(0)
    for value in (0.02, -0.02, 1.001, -3.1415):
        exact = torch.full((200_000,), value)
        found = round_at_random(exact).float()
        assert len(found.unique()) == 2
        assert found.mean().item() == pytest.approx(value, rel=5e-5)


def test_infinity_and_nan_stay_what_they_are():
    found = round_at_random(torch.tensor([float("inf"), -float("inf"), float("nan")]))
    assert found[0] == float("inf") and found[1] == -float("inf") and found[2].isnan()


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
@settings(deadline=None)
def test_a_number_and_its_remainder_are_all_its_bits(bits):
    exact = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    found = exact.clone()
    remainder = cut_remainder(found)
    is_nan = exact.isnan()
    assert torch.equal(found.isnan(), is_nan)
    # Halves apart, it is rounded as torch rounds, and bfloat16 holds it.
    is_half = exact.view(torch.int32) % (1 << 16) == 1 << 15
    assert torch.equal(found[~is_nan], found.bfloat16().float()[~is_nan])
    assert torch.equal(found[~is_nan & ~is_half], exact.bfloat16().float()[~is_nan & ~is_half])
    add_remainder(found, remainder)
    assert torch.equal(found.view(torch.int32)[~is_nan], exact.view(torch.int32)[~is_nan])
    assert remainder.dtype == torch.int16


def built(weights: list[nn.Parameter], master: str, lr: float = 1e-6) -> torch.optim.Optimizer:
    config = AdamWConfig(lr=lr, master=master, weight_decay=0.01)
    return AdamW(config).build([(f"weight{index}", weight) for index, weight in enumerate(weights)])


def moved(master: str, dtype: torch.dtype, steps: int = 100) -> float:
    """Where weights of 0.02 go on average under 100 small steps, by their drift."""
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(2000, 4, generator=generator)).bfloat16()
    drift = torch.randn(2000, 4, generator=generator).sign()
    weight = nn.Parameter(start.to(dtype, copy=True))
    optimizer = built([weight], master)
    torch.manual_seed(0)
    for _ in range(steps):
        weight.grad = drift.to(dtype)
        optimizer.step()
    return ((start.float() - weight.detach().float()) * drift).mean().item()


def test_small_steps_of_bfloat16_weights_add_up():
    expected = moved("none", torch.float32)
    # A step of float32 is 1e-6, and the weights are some 1e-2: a hundred of them are one step of bfloat16.
    assert expected == pytest.approx(1e-4, rel=0.01)
    assert moved("float32", torch.bfloat16) == pytest.approx(expected, rel=0.05)
    assert moved("stochastic", torch.bfloat16) == pytest.approx(expected, rel=0.05)
    assert moved("none", torch.bfloat16) < 0.1 * expected


def whole(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> torch.Tensor:
    """A weight's number in float32."""
    number = weight.detach().float()
    add_remainder(number, optimizer.state[weight]["remainder"])
    return number


def test_with_their_other_half_weights_are_those_of_float32_rounded(monkeypatch):
    # So few at once that every weight is a part of its own.
    monkeypatch.setattr(master_weights, "_MOST_AT_ONCE", 1)
    torch.manual_seed(0)
    shapes = [(3, 4), (4,), (2, 2)]
    starts = [torch.randn(shape).bfloat16() for shape in shapes]
    halves = [nn.Parameter(start.clone()) for start in starts]
    # One of them is in float32, as part of a model may be.
    halves[2] = nn.Parameter(starts[2].float())
    wholes = [nn.Parameter(start.float()) for start in starts]
    half, full = built(halves, "float32", 1e-3), built(wholes, "none", 1e-3)
    assert isinstance(half, Float32Updates) and not isinstance(full, Float32Updates)
    for step in range(20):
        for index, (one, other) in enumerate(zip(halves, wholes, strict=True)):
            gradient = torch.randn(one.shape).bfloat16()
            # A weight without a gradient stays, and so does its state.
            one.grad = None if index == step % 3 else gradient.to(one.dtype)
            other.grad = None if index == step % 3 else gradient.float()
        for optimizer in (half, full):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (step + 1)
            optimizer.step()
    for one, other in zip(halves, wholes, strict=True):
        assert torch.equal(one.detach(), other.detach().to(one.dtype))
        assert torch.equal(half.state[one]["exp_avg_sq"], full.state[other]["exp_avg_sq"])
    assert "remainder" not in half.state[halves[2]]
    assert torch.equal(whole(half, halves[0]), wholes[0])


@pytest.mark.parametrize("master", ["float32", "stochastic"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(master):
    def steps(weight: nn.Parameter, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            weight.grad = torch.randn(5, 7, generator=torch.Generator().manual_seed(step)).bfloat16()
            optimizer.step()

    torch.manual_seed(0)
    start = torch.randn(5, 7).bfloat16()
    weight = nn.Parameter(start.clone())
    optimizer = built([weight], master, 1e-4)
    steps(weight, optimizer, 0, 4)
    # As from a file: on the CPU the state holds the optimizer's own tensors.
    state, there = copy.deepcopy(capture_state(optimizer)), nn.Parameter(weight.detach().clone())
    assert ("optimizer.0.remainder" in state.tensors) is (master == "float32")
    steps(weight, optimizer, 4, 8)
    resumed = built([there], master, 1e-4)
    restore_state(state, resumed, "train")
    assert resumed.state[there]["exp_avg"].dtype == torch.float32
    steps(there, resumed, 4, 8)
    assert torch.equal(there, weight)
    assert all(torch.equal(resumed.state[there][key], value) for key, value in optimizer.state[weight].items())


def test_a_state_with_whole_copies_of_an_earlier_version_goes_on_from_them():
    weight = nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer, other = built([weight], "float32", 1e-4), nn.Parameter(weight.detach().clone())
    weight.grad = torch.ones(5, 7).bfloat16()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["master"] = number = whole(optimizer, weight)
    del saved["state"][0]["remainder"]
    resumed, before = built([other], "float32", 1e-4), number.clone()
    resumed.load_state_dict(saved)
    assert torch.equal(number, before), "the checkpoint's tensors stay as they are"
    assert torch.equal(whole(resumed, other), number) and torch.equal(other, weight)


def test_a_state_that_was_saved_without_remainders_makes_them_from_the_weights():
    weight = nn.Parameter(torch.ones(3, 3).bfloat16())
    plain = built([weight], "none", 1e-4)
    weight.grad = torch.ones(3, 3).bfloat16()
    plain.step()
    resumed = built([weight], "float32", 1e-4)
    resumed.load_state_dict(plain.state_dict())
    before = weight.detach().float()
    resumed.step()
    assert torch.allclose(whole(resumed, weight), before - 1e-4, atol=3e-5)


def last_loss(dtype: torch.dtype, master: str) -> float:
    """The loss that a small network ends at, which learns how tokens follow one another."""
    torch.manual_seed(0)
    layers = nn.Embedding(64, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64)
    model = nn.Sequential(*layers).bfloat16().to(dtype)
    generator = torch.Generator().manual_seed(1)
    follows = torch.randn(64, 64, generator=generator).mul(2).softmax(-1)
    optimizer = built(list(model.parameters()), master, 1e-4)
    losses = []
    for _ in range(200):
        tokens = torch.randint(0, 64, (128,), generator=generator)
        following = torch.multinomial(follows[tokens], 1, generator=generator)[:, 0]
        loss = nn.functional.cross_entropy(model(tokens).float(), following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def test_bfloat16_weights_reach_the_loss_of_float32():
    expected = last_loss(torch.float32, "none")
    assert last_loss(torch.bfloat16, "float32") == pytest.approx(expected, rel=0.005)
    assert last_loss(torch.bfloat16, "stochastic") == pytest.approx(expected, rel=0.005)
    assert last_loss(torch.bfloat16, "none") > 1.015 * expected
