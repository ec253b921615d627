"""The MLP projector merges neighbours of each region's grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vilavt_components.projectors.mlp import MLPConfig, MLPProjector


def merging(merge, pool="concat", in_width=2):
    """A projector whose layers change nothing, so that only merging shows."""
    projector = MLPProjector(MLPConfig(merge=merge, pool=pool), in_width, 8)
    projector.net = nn.Identity()
    return projector


def test_neighbours_are_concatenated_row_by_row():
    features = torch.arange(8.0).view(8, 1)
    found = merging(2, in_width=1)(features, [(2, 4)])
    assert found.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_neighbours_are_averaged():
    features = torch.arange(8.0).view(8, 1)
    assert merging(2, "mean", 1)(features, [(2, 4)]).tolist() == [[2.5], [4.5]]


def test_the_last_row_and_column_of_an_odd_grid_are_repeated():
    features = torch.arange(3.0).view(3, 1)
    assert merging(2, in_width=1)(features, [(1, 3)]).tolist() == [[0, 1, 0, 1], [2, 2, 2, 2]]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.sampled_from(["concat", "mean"]),
)
def test_features_come_out_in_the_regions_order_as_many_as_the_grid_says(sizes, merge, pool):
    torch.manual_seed(0)
    projector = MLPProjector(MLPConfig(merge=merge, pool=pool), 3, 5)
    parts = [torch.randn(math.prod(size), 3) for size in sizes]
    packed = projector(torch.cat(parts), sizes).split([math.prod(projector.output_grid(size)) for size in sizes])
    for found, part, size in zip(packed, parts, sizes, strict=True):
        torch.testing.assert_close(found, projector(part, [size]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_has_as_many_linear_layers_as_asked(layers):
    projector = MLPProjector(MLPConfig(layers=layers, hidden_dim=7), 3, 5)
    assert sum(isinstance(module, nn.Linear) for module in projector.modules()) == layers
    assert projector(torch.randn(4, 3), [(2, 2)]).shape == (4, 5)


def test_centred_features_have_no_common_part_in_training_and_lose_its_running_mean_elsewhere():
    torch.manual_seed(0)
    projector = MLPProjector(MLPConfig(center=True), 4, 8)
    features = torch.randn(12, 4) + 5
    learned = projector(features, [(3, 4)])
    assert learned.mean(0).abs().max() < 1e-6 < learned.std()
    assert projector.eval()(features, [(3, 4)]).mean(0).norm() > 0.01, "the running mean is there at once"
    projector.train()
    for _ in range(100):
        projector(features, [(3, 4)])
    assert torch.allclose(projector.eval()(features, [(3, 4)]), learned, atol=1e-5)


def test_where_it_is_not_trained_a_centred_feature_does_not_depend_on_its_company():
    projector = MLPProjector(MLPConfig(center=True), 4, 8)
    projector(torch.randn(12, 4), [(3, 4)])
    projector.eval()
    features = torch.randn(6, 4)
    assert torch.allclose(projector(features, [(2, 3)])[:2], projector(features[:2], [(1, 2)]), atol=1e-6)
