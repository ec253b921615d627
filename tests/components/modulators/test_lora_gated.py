"""LoRA with gates adds, per inquiry, a low-rank matrix to a linear, and starts as nothing."""

import pytest
import torch

from vilavt_components.modulators.lora_gated import LoRAGated, LoRAGatedConfig
from vilavt_toolkit.contracts import BlockSpec, Inquiry
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.testing.bench import assert_gradients, backpropagate

BLOCK = BlockSpec(8, {"qkv": 24, "proj": 8, "fc1": 32, "fc2": 8}, {"fc2": 32})
ALL = ("qkv", "proj", "fc1", "fc2")


def inquiry_of(pooled):
    """Region 0 of 2 tokens under inquiry 0, region 1 of 3 tokens under inquiry 1."""
    layout = Layout.build([(2,), (3,)], [2, 3], [0, 1])
    return Inquiry(torch.zeros(0, pooled.shape[1]), pooled, (1, 1), layout)


def opened(rank=3, scale=1.0):
    """All four deltas, whose `up` is no longer zero."""
    torch.manual_seed(0)
    made = LoRAGated(LoRAGatedConfig(rank=rank, scale=scale, targets=ALL), BLOCK, 6)
    for delta in made.deltas.values():
        torch.nn.init.normal_(delta.up.weight)
    return made


def through(site, tokens=5):
    return torch.randn(tokens, BLOCK.input_width(site)), torch.randn(tokens, BLOCK.sites[site])


@torch.no_grad()
@pytest.mark.parametrize("site", ALL)
def test_it_is_a_low_rank_matrix_of_the_inquirys_own_added_to_the_linear(site):
    made, pooled = opened(rank=3), torch.randn(2, 6)
    linear = torch.nn.Linear(BLOCK.input_width(site), BLOCK.sites[site])
    x = torch.randn(5, BLOCK.input_width(site))
    found = made.modulate(site, x, linear(x), inquiry_of(pooled))
    delta = made.deltas[site]
    gates = delta.gate(made.norm(pooled))
    for group, tokens in enumerate((slice(0, 2), slice(2, 5))):
        matrix = delta.up.weight @ gates[group].diag() @ delta.down.weight
        assert torch.linalg.matrix_rank(matrix) <= 3
        expected = x[tokens] @ (linear.weight + matrix).T + linear.bias
        torch.testing.assert_close(found[tokens], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_scale_says_how_strong_it_is():
    pooled, (x, y) = torch.randn(2, 6), through("qkv")
    once, twice = (opened(scale=s).modulate("qkv", x, y, inquiry_of(pooled)) - y for s in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gates_do_not_saturate_however_large_the_inquirys_features_are():
    made, pooled, (x, y) = opened(), torch.randn(2, 6), through("fc2")
    found = [made.modulate("fc2", x, y, inquiry_of(size * pooled)) - y for size in (1, 1000)]
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)
    gates = made.deltas["fc2"].gate(made.norm(torch.randn(500, 6)))
    assert (gates > 0.5).any() and (gates < -0.5).any(), (
        "from the start an inquiry can want a direction or its opposite"
    )


def test_it_changes_nothing_before_training_and_everything_in_it_learns_after_a_step():
    made = LoRAGated(LoRAGatedConfig(rank=2, targets=ALL), BLOCK, 6)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    inquiry = inquiry_of(torch.randn(2, 6))
    parts = [(site, *through(site)) for site in ALL]
    for step in range(2):
        optimizer.zero_grad()
        changed = [made.modulate(site, x, y, inquiry) for site, x, y in parts]
        if step == 0:
            assert all(torch.equal(after, y) for after, (_, _, y) in zip(changed, parts, strict=True))
        backpropagate(sum(after.square().sum() for after in changed))
        optimizer.step()
    assert_gradients(made)
    assert all(parameter.grad.any() for parameter in made.parameters())


@torch.no_grad()
@pytest.mark.parametrize("of_encoder", [torch.bfloat16, torch.float32])
def test_the_encoder_and_it_may_have_different_precisions(of_encoder):
    made, pooled, (x, y) = opened(), torch.randn(2, 6), through("fc1")
    expected = made.modulate("fc1", x, y, inquiry_of(pooled))
    made.to(torch.float32 if of_encoder is torch.bfloat16 else torch.bfloat16)
    found = made.modulate("fc1", x.to(of_encoder), y.to(of_encoder), inquiry_of(pooled))
    assert found.dtype is of_encoder
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


def test_a_linear_that_is_not_there_is_refused_by_name():
    assert not LoRAGated.unsupported_reason(LoRAGatedConfig(targets=ALL), BLOCK)
    assert "'qkv'" in LoRAGated.unsupported_reason(LoRAGatedConfig(), BlockSpec(8, {"block": 8}))
    assert "'fc1'" in LoRAGated.unsupported_reason(LoRAGatedConfig(targets=("fc2", "fc1")), BlockSpec(8, {"fc2": 8}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("qkv", "qkv")}, "names qkv twice"),
        ({"scale": 0.0}, "scale 0 adds nothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoRAGatedConfig(**settings)
