"""Bucketed attention equals attention with a mask that says who sees whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vilavt_toolkit.packed.attention import attend_segments
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.testing import no_synchronisation

HEADS, DIM = 2, 4
regions = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=7)
lengths_of_inquiries = st.tuples(*[st.integers(0, 3)] * 3)


def layout_of(pairs):
    return Layout.build([(n,) for n, _ in pairs], [n for n, _ in pairs], [group for _, group in pairs])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def qkv_of(layout):
    return [random(layout.length, HEADS, DIM, seed=seed).requires_grad_() for seed in range(3)]


def masked(q, k, v, seen):
    """Attention of [S, H, d] over [S', H, d] where `seen` [S, S']."""
    out = F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=seen)
    return out.transpose(0, 1)


def segment_of(layout, partition):
    lengths = torch.tensor(layout.partitions[partition])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


@settings(max_examples=25, deadline=None)
@given(regions, st.sampled_from(["region", "group"]))
def test_segments_see_themselves_only(pairs, partition):
    layout = layout_of(pairs)
    q, k, v = qkv_of(layout)
    segment = segment_of(layout, partition)
    found = attend_segments(q, k, v, layout, partition)
    expected = masked(q, k, v, segment[:, None] == segment)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, expected)]
    torch.testing.assert_close(*grads)


@settings(max_examples=25, deadline=None)
@given(regions, lengths_of_inquiries, st.integers(1, 2), st.sampled_from(["region", "group"]))
def test_context_is_seen_by_its_own_group_only(pairs, lengths, copies, partition):
    layout = layout_of(pairs)
    q, k, v = qkv_of(layout)
    # The second context has numbers of keys of its own.
    of_context = [lengths, lengths[::-1]][:copies]
    made = [tuple(random(sum(n), HEADS, DIM, seed=10 * j + i) for j in (1, 2)) for i, n in enumerate(of_context)]
    found = attend_segments(q, k, v, layout, partition, made, of_context)
    segment, group = segment_of(layout, partition), layout.token_groups(torch.device("cpu"))
    of_key = torch.cat([torch.repeat_interleave(torch.arange(3), torch.tensor(n)) for n in of_context])
    seen = torch.cat([segment[:, None] == segment, group[:, None] == of_key], dim=1)
    keys, values = (torch.cat([own, *(pair[i] for pair in made)]) for i, own in enumerate((k, v)))
    torch.testing.assert_close(found, masked(q, keys, values, seen))


def test_the_context_gets_its_gradient_from_every_region_of_its_group():
    layout = layout_of([(2, 0), (3, 0), (2, 1)])
    q, k, v = qkv_of(layout)
    context = random(3, HEADS, DIM).requires_grad_(), random(3, HEADS, DIM, seed=1).requires_grad_()
    attend_segments(q, k, v, layout, "region", [context], [(2, 1)]).square().sum().backward()
    assert context[0].grad.abs().amin() > 0
    assert context[1].grad.abs().amin() > 0


def test_gradients_are_the_same_bit_for_bit_each_time():
    layout = layout_of([(5, 0), (3, 1), (5, 1), (7, 0)])
    context = random(4, HEADS, DIM).requires_grad_(), random(4, HEADS, DIM, seed=1)
    runs = []
    for _ in range(3):
        q, k, v = qkv_of(layout)
        out = attend_segments(q, k, v, layout, "region", [context], [(3, 1)])
        runs.append(torch.autograd.grad(out.square().sum(), (q, k, v, context[0])))
    assert all(torch.equal(a, b) for later in runs[1:] for a, b in zip(runs[0], later, strict=True))


def test_indices_are_copied_to_the_device_once(monkeypatch):
    layout = layout_of([(5, 0), (3, 1), (5, 1)])
    q, k, v = qkv_of(layout)
    expected = attend_segments(q, k, v, layout, "region")
    monkeypatch.setattr("vilavt_toolkit.packed.attention.to_device", lambda *args: pytest.fail("copied again"))
    with no_synchronisation():
        found = attend_segments(q, k, v, layout, "region")
    assert torch.equal(found, expected)
