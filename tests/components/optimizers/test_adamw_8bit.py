"""AdamW in 8 bits: its state goes into a checkpoint as plain tensors and comes back, and its package is asked for."""

import sys

import pytest
import torch
from torch import nn

from vilavt_components.optimizers import adamw_8bit
from vilavt_components.optimizers.adamw_8bit import AdamW8bit, AdamW8bitConfig
from vilavt_toolkit.errors import MissingPackage
from vilavt_toolkit.training.resume import capture_state, restore_state


def test_without_bitsandbytes_it_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    adamw_8bit._optimizer_class.cache_clear()
    with pytest.raises(MissingPackage, match=r"pip install 'vilavt-toolkit\[optim8bit\]'"):
        AdamW8bit(AdamW8bitConfig()).build(nn.Linear(2, 2).named_parameters())


def trained(module, optimizer, steps):
    for step in range(steps):
        torch.manual_seed(step)
        for weight in module.parameters():
            weight.grad = torch.randn(weight.shape)
        optimizer.step()


def test_its_state_is_one_byte_a_number_and_resumes_bit_by_bit():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    first = nn.Linear(64, 128)
    second = nn.Linear(64, 128)
    second.load_state_dict(first.state_dict())
    optimizer = AdamW8bit(AdamW8bitConfig(lr=1e-2)).build(first.named_parameters())
    trained(first, optimizer, 3)
    state = capture_state(optimizer)
    assert {value.dtype for name, value in state.tensors.items() if name.startswith("optimizer.0.state")} == {
        torch.uint8
    }
    second.load_state_dict(first.state_dict())
    other = AdamW8bit(AdamW8bitConfig(lr=1e-2)).build(second.named_parameters())
    restore_state(state, other, "train")
    trained(first, optimizer, 2)
    trained(second, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("master", ["float32", "stochastic"])
def test_small_steps_of_weights_in_bfloat16_are_collected_and_resume_bit_by_bit(master):
    pytest.importorskip("bitsandbytes")

    def build_in_bfloat16():
        module = nn.Linear(64, 128, bias=False).bfloat16()
        nn.init.constant_(module.weight, 1.0)
        return module, AdamW8bit(AdamW8bitConfig(lr=1e-4, weight_decay=0.0, master=master)).build(
            module.named_parameters()
        )

    def train(module, optimizer, steps):
        torch.manual_seed(0)
        for _ in range(steps):
            module.weight.grad = torch.ones_like(module.weight)
            optimizer.step()

    first, optimizer = build_in_bfloat16()
    train(first, optimizer, 100)
    # Each step is 1e-4, and the numbers of bfloat16 below 1 are 4e-3 apart.
    assert first.weight.detach().float().mean().item() == pytest.approx(1 - 100 * 1e-4, abs=2e-3)
    state = capture_state(optimizer)
    assert torch.uint8 in {value.dtype for value in state.tensors.values()}
    second, other = build_in_bfloat16()
    with torch.no_grad():
        second.weight.copy_(first.weight)
    restore_state(state, other, "train")
    train(first, optimizer, 20)
    train(second, other, 20)
    assert torch.equal(first.weight, second.weight)
