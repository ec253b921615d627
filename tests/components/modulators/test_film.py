"""FiLM scales and shifts by the inquiry, and starts as nothing."""

import torch

from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_toolkit.contracts import BlockSpec, Inquiry
from vilavt_toolkit.packed.tokens import Layout

BLOCK = BlockSpec(6, {"norm1": 6, "norm2": 6})


def inquiry_of(pooled):
    layout = Layout.build([(2,), (3,)], [2, 3], [0, 1])
    return Inquiry(torch.zeros(0, pooled.shape[1]), pooled, (1, 1), layout)


def test_it_scales_and_shifts_each_group_by_its_own_inquiry():
    film = FiLM(FiLMConfig(zero_init=False), BLOCK, 4)
    pooled, y = torch.randn(2, 4), torch.randn(5, 6)
    found = film.modulate("norm2", y, y, inquiry_of(pooled))
    scale, shift = film.nets["norm2"](pooled).chunk(2, dim=-1)
    expected = torch.cat([(1 + scale[0]) * y[:2] + shift[0], (1 + scale[1]) * y[2:] + shift[1]])
    torch.testing.assert_close(found, expected)


def test_a_scale_too_small_to_stand_beside_1_in_bfloat16_still_scales():
    film, y = FiLM(FiLMConfig(), BLOCK, 4).bfloat16(), torch.randn(5, 6)
    with torch.no_grad():
        film.nets["norm1"][-1].bias[:6] = 1e-3
    found = film.modulate("norm1", y, y, inquiry_of(torch.randn(2, 4).bfloat16()))
    torch.testing.assert_close(found - y, 1e-3 * y, rtol=0.02, atol=1e-6)


def test_it_changes_nothing_before_training():
    film = FiLM(FiLMConfig(hidden_dim=8), BLOCK, 4)
    y = torch.randn(5, 6)
    assert torch.equal(film.modulate("norm1", y, y, inquiry_of(torch.randn(2, 4))), y)


def test_it_refuses_blocks_without_norms_and_output():
    reason = FiLM.unsupported_reason(FiLMConfig(), BlockSpec(6, {"mlp": 6}))
    assert "'norm1'" in reason
    assert not FiLM.unsupported_reason(FiLMConfig(), BLOCK)


def test_it_scales_the_output_of_a_stage_whose_norms_are_inside():
    stage = BlockSpec(6, {"block": 6})
    assert not FiLM.unsupported_reason(FiLMConfig(), stage)
    film = FiLM(FiLMConfig(zero_init=False), stage, 4)
    assert film.sites == {"block"}
    assert FiLM(FiLMConfig(), BlockSpec(6, {"norm1": 6, "norm2": 6, "block": 6}), 4).sites == {"norm1", "norm2"}
    pooled, y = torch.randn(2, 4), torch.randn(5, 6)
    scale, shift = film.nets["block"](pooled).chunk(2, dim=-1)
    expected = torch.cat([(1 + scale[0]) * y[:2] + shift[0], (1 + scale[1]) * y[2:] + shift[1]])
    torch.testing.assert_close(film.modulate("block", y, y, inquiry_of(pooled)), expected)
