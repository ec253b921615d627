"""adaLN-Zero scales and shifts the norms and gates the branches by the inquiry, and starts as nothing."""

import torch
from torch.nn import functional as F

from vilavt_components.modulators.adaln_zero import AdaLNZero
from vilavt_toolkit.contracts import BlockSpec, Inquiry
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.settings import NoSettings

# Two branches side by side: the norms are twice as wide as what joins the residual stream.
BLOCK = BlockSpec(3, {"norm1": 6, "norm2": 6, "attention": 3, "mlp": 3})


def inquiry_of(pooled):
    layout = Layout.build([(2,), (3,)], [2, 3], [0, 1])
    return Inquiry(torch.zeros(0, pooled.shape[1]), pooled, (1, 1), layout)


def test_norms_are_scaled_and_shifted_and_branches_are_gated_by_one_layer():
    modulator = AdaLNZero(NoSettings(), BLOCK, 4)
    torch.nn.init.normal_(modulator.net.weight)
    torch.nn.init.normal_(modulator.net.bias)
    pooled = torch.randn(2, 4)
    vectors = modulator.net(F.silu(pooled))[torch.tensor([0, 0, 1, 1, 1])]
    norm1, norm2, attention, mlp = vectors.split([12, 12, 3, 3], dim=-1)
    for site, part in (("norm1", norm1), ("norm2", norm2)):
        y = torch.randn(5, 6)
        scale, shift = part.chunk(2, dim=-1)
        torch.testing.assert_close(modulator.modulate(site, y, y, inquiry_of(pooled)), (1 + scale) * y + shift)
    for site, gate in (("attention", attention), ("mlp", mlp)):
        y = torch.randn(5, 3)
        torch.testing.assert_close(modulator.modulate(site, y, y, inquiry_of(pooled)), (1 + gate) * y)


def test_every_row_of_its_layer_learns_from_the_first_step():
    modulator, pooled = AdaLNZero(NoSettings(), BLOCK, 4), torch.randn(2, 4)
    for site, width in BLOCK.sites.items():
        y = torch.randn(5, width)
        found = modulator.modulate(site, y, y, inquiry_of(pooled))
        assert torch.equal(found, y)
        found.square().sum().backward()
    assert modulator.net.weight.grad.abs().amin() > 0
