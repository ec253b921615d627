"""apex's FusedAdam: found by its extension alone, refused with the build command, and its state is AdamW's."""

import sys
import time
import types

import pytest
import torch
from torch import nn

from vilavt_components.common.apex import BUILD, require_apex
from vilavt_components.optimizers.adamw import AdamW, AdamWConfig
from vilavt_components.optimizers.apex_fused_adam import (
    ApexFusedAdam,
    ApexFusedAdamConfig,
    from_adamw_state,
    refuse_bfloat16,
    to_adamw_state,
)
from vilavt_toolkit.cli.app import run as command
from vilavt_toolkit.errors import BadConfig, MissingPackage


def usable() -> bool:
    try:
        require_apex("it", "another")
    except MissingPackage:
        return False
    return True


needs_apex = pytest.mark.skipif(not usable(), reason="apex's CUDA extensions are not here")


@pytest.mark.parametrize("has_cuda", [False, True])
def test_without_its_extension_it_is_refused_with_the_build_command(monkeypatch, has_cuda):
    """Also where the index's `apex` is installed, which is another project."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(MissingPackage) as told:
        ApexFusedAdam(ApexFusedAdamConfig()).build(nn.Linear(2, 2).named_parameters())
    assert BUILD in str(told.value) and "set optimizer adamw" in str(told.value)
    assert ("another project" in str(told.value)) is has_cuda


def test_it_is_found_by_its_extension_with_a_gpu_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "amp_C", types.ModuleType("amp_C"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_apex("it", "another")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingPackage, match="there is none here"):
        require_apex("it", "another")


@pytest.mark.skipif(usable(), reason="apex can be used here")
def test_check_refuses_it_where_it_is_not(tiny_recipe, capsys):
    assert command(["check", str(tiny_recipe), "train.optimizer={name: apex_fused_adam}"]) == 2
    told = capsys.readouterr().err
    assert "train.optimizer: " in told and "APEX_CUDA_EXT=1" in told


def stepped(optimizer, module, steps):
    for step in range(steps):
        torch.manual_seed(step)
        for weight in module.parameters():
            weight.grad = torch.randn(weight.shape).to(weight)
        optimizer.step()


def test_the_state_of_adamw_becomes_that_of_fused_adam_and_back():
    """FusedAdam counts steps in its groups, and leaves them out of the states of weights."""
    module = nn.Linear(3, 2)
    optimizer = AdamW(AdamWConfig()).build(module.named_parameters())
    stepped(optimizer, module, 3)
    before = optimizer.state_dict()
    theirs = from_adamw_state(before)
    assert [group["step"] for group in theirs["param_groups"]] == [3, 3]
    assert all(set(values) == {"exp_avg", "exp_avg_sq"} for values in theirs["state"].values())
    again = to_adamw_state(theirs)
    other = AdamW(AdamWConfig()).build(module.named_parameters())
    other.load_state_dict(again)
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


@needs_apex
def test_ten_steps_are_those_of_adamw_and_its_state_goes_on_in_adamw_and_back():
    modules = [nn.Linear(64, 64).cuda() for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    ours = ApexFusedAdam(ApexFusedAdamConfig(lr=1e-2)).build(modules[0].named_parameters())
    theirs = AdamW(AdamWConfig(lr=1e-2)).build(modules[1].named_parameters())
    for _ in range(2):
        stepped(ours, modules[0], 10)
        stepped(theirs, modules[1], 10)
        for one, other in zip(*(module.parameters() for module in modules), strict=True):
            assert (one - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))
        # Each goes on with the other's state.
        states = ours.state_dict(), theirs.state_dict()
        ours.load_state_dict({**states[1], "param_groups": states[0]["param_groups"]})
        theirs.load_state_dict({**states[0], "param_groups": states[1]["param_groups"]})


@needs_apex
def test_it_is_not_slower_than_fused_adamw_by_half():
    seconds = {}
    for name, optimizer in (("apex", ApexFusedAdam(ApexFusedAdamConfig())), ("torch", AdamW(AdamWConfig()))):
        module = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(16)]).cuda()
        built = optimizer.build(module.named_parameters())
        stepped(built, module, 2)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            built.step()
        torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start
    assert seconds["apex"] <= 1.5 * seconds["torch"], seconds


def test_weights_in_bfloat16_are_refused_with_what_to_choose():
    weights = nn.Linear(2, 2)
    refuse_bfloat16(weights.parameters())
    with pytest.raises(BadConfig, match=r"Choose optimizer adamw, .* train\.precision=bf16-mixed"):
        refuse_bfloat16(weights.bfloat16().parameters())
