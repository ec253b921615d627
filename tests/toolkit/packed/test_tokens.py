"""Layouts put regions in order of their groups and features back in the caller's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.packed.tokens import Layout, Tokens, gather_rows, permute_rows, segment_permutation

regions = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=8)


def layout_of(triples):
    sizes = [(h, w) for h, w, _ in triples]
    return Layout.build(sizes, [h * w for h, w in sizes], [group for _, _, group in triples])


@given(regions)
def test_packed_groups_never_decrease_and_every_partition_covers_all_tokens(triples):
    layout = layout_of(triples)
    assert list(layout.groups) == sorted(group for _, _, group in triples)
    assert {sum(lengths) for lengths in layout.partitions.values()} == {sum(h * w for h, w, _ in triples)}
    assert sorted(layout.order) == list(range(len(triples)))


@given(regions)
def test_restore_brings_features_back_into_the_callers_order(triples):
    layout = layout_of(triples)
    counts = [h * w for h, w, _ in triples]
    rows = [torch.full((count, 1), float(region)) for region, count in enumerate(counts)]
    packed = torch.cat([rows[region] for region in layout.order])
    restored = layout.restore_order(packed, [counts[region] for region in layout.order])
    assert torch.equal(restored, torch.cat(rows))


@given(regions)
def test_every_token_knows_its_group_and_region(triples):
    layout = layout_of(triples)
    cpu = torch.device("cpu")
    lengths = torch.tensor(layout.partitions["region"])
    assert torch.equal(layout.token_groups(cpu), torch.repeat_interleave(torch.tensor(layout.groups), lengths))
    assert torch.equal(layout.token_regions(cpu), torch.repeat_interleave(torch.arange(len(triples)), lengths))
    assert layout.segment_groups("region") == layout.groups
    assert layout.segment_groups("group") == tuple(sorted(set(layout.groups)))


def test_a_partition_that_does_not_cover_the_tokens_is_refused():
    with pytest.raises(ValueError, match="'window' covers 3 tokens of 4"):
        Layout.build([(2, 2)], [4], [0], lambda sizes: {"window": [1, 2]})


def test_a_partition_that_joins_two_groups_is_refused():
    with pytest.raises(ValueError, match="'window' spans two inquiry groups"):
        Layout.build([(2, 2), (2, 2)], [4, 4], [0, 1], lambda sizes: {"window": [3, 5]})


def test_own_partitions_are_asked_for_in_packed_order():
    seen = []
    Layout.build([(1, 3), (1, 1)], [3, 1], [1, 0], lambda sizes: seen.append(tuple(sizes)) or {})
    assert seen == [((1, 1), (1, 3))]


def test_resized_regions_keep_their_order_and_groups():
    own = lambda sizes: {"window": [size[0] * size[1] for size in sizes]}  # noqa: E731
    layout = Layout.build([(4, 4), (2, 6), (2, 2)], [16, 12, 4], [1, 0, 1], own, "buckets")
    halved = layout.with_sizes([(1, 3), (2, 2), (1, 1)], [3, 4, 1], own)
    assert (halved.order, halved.groups, halved.attention) == (layout.order, layout.groups, "buckets")
    assert halved.partitions == {"region": (3, 4, 1), "group": (3, 5), "window": (3, 4, 1)}
    assert halved.token_groups(torch.device("cpu")).tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_tokens_with_positions_keep_their_layout():
    layout = Layout.build([(2, 2)], [4], [0])
    fewer = layout.with_sizes([(1, 1)], [1])
    assert Tokens(torch.zeros(4, 2), layout).after_block(torch.zeros(1, 3), fewer).layout is fewer
    with pytest.raises(ValueError, match="changed the grid of tokens that have positions"):
        Tokens(torch.zeros(4, 2), layout, torch.zeros(4, 1)).after_block(torch.zeros(1, 3), fewer)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms())
def test_segments_are_brought_into_an_order_and_back(counts, random):
    order = random.sample(range(len(counts)), len(counts))
    rows = [torch.full((count, 1), float(segment)) for segment, count in enumerate(counts)]
    there, back = segment_permutation(counts, order, torch.device("cpu"))
    packed = torch.cat(rows)
    moved = permute_rows(packed, there, back)
    assert torch.equal(moved, torch.cat([rows[segment] for segment in order]))
    assert torch.equal(permute_rows(moved, back, there), packed)


def test_permuting_passes_the_gradient_the_way_back():
    order = torch.tensor([2, 0, 1])
    back = torch.tensor([1, 2, 0])
    x = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    assert torch.equal(permute_rows(x, order, back), x[order])
    assert torch.autograd.gradcheck(lambda t: permute_rows(t, order, back), x)
    assert torch.autograd.gradgradcheck(lambda t: permute_rows(t, order, back), x)


def test_spreading_rows_sums_their_gradient():
    values = torch.randn(3, 2, 2, dtype=torch.double, requires_grad=True)
    index = torch.tensor([0, 0, 2, 1, 2])
    assert torch.equal(gather_rows(values, index), values[index])
    assert torch.autograd.gradcheck(lambda t: gather_rows(t, index), values)
