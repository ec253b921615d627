"""The packed kernel is handed what gives the same attention as buckets, and is chosen where it can work."""

import importlib
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed import varlen
from vilavt_toolkit.packed.attention import attend_inquiry, attend_segments
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.packed.varlen import choose_kernel
from vilavt_toolkit.testing import no_synchronisation

HEADS, DIM = 2, 8
regions = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=7)
lengths_of_inquiries = st.tuples(*[st.integers(0, 3)] * 3)


def layout_of(pairs, attention):
    counts = [n for n, _ in pairs]
    return Layout.build([(n,) for n in counts], counts, [group for _, group in pairs], attention=attention)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()


def reference(q, k, v, starts_q, starts_k, longest_q, longest_k, scale):
    """What the kernel computes, segment by segment; refuses what the kernel would."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert len(starts_q) == len(starts_k)
    assert starts_q[-1] == len(q) and starts_k[-1] == len(k) == len(v)
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
    assert q.dtype == k.dtype == v.dtype
    assert (longest_q, longest_k) == (starts_q.diff().max().item(), starts_k.diff().max().item())
    parts = []
    for (a, b), (c, d) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
        assert d > c, "a segment has no key"
        logits = torch.einsum("nhd,mhd->hnm", q[a:b], k[c:d]) * (DIM**-0.5 if scale is None else scale)
        parts.append(torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v[c:d]))
    return torch.cat(parts)


@contextmanager
def without_gpu():
    """The reference in place of the kernel, on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_unsupported_reason", lambda q: "")
        patch.setattr(varlen, "run_varlen_kernel", reference)
        yield patch


def both(run, inputs):
    """Output and gradients with either kernel."""
    results = []
    with without_gpu():
        for attention in ("varlen", "buckets"):
            out = run(attention)
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            loss = (out * weights).sum() + 0 * sum(t.sum() for t in inputs)  # where nothing is attended to
            grads = torch.autograd.grad(loss, inputs)
            results.append((out, *grads))
    return results


@settings(max_examples=40, deadline=None)
@given(regions, lengths_of_inquiries, st.integers(0, 2), st.sampled_from(["region", "group"]), st.booleans())
def test_packed_attention_with_contexts_equals_buckets(pairs, lengths, copies, partition, scaled):
    q, k, v = (random(sum(n for n, _ in pairs), HEADS, DIM, seed=seed) for seed in range(3))
    # The second context has numbers of keys of its own.
    of_context = [lengths, lengths[::-1]][:copies]
    contexts = [tuple(random(sum(n), HEADS, DIM, seed=10 * i + j) for j in (1, 2)) for i, n in enumerate(of_context)]

    def run(attention):
        layout = layout_of(pairs, attention)
        return attend_segments(q, k, v, layout, partition, contexts, of_context, 0.3 if scaled else None)

    torch.testing.assert_close(*both(run, [q, k, v, *(t for pair in contexts for t in pair)]))


@settings(max_examples=40, deadline=None)
@given(regions, lengths_of_inquiries)
def test_packed_attention_to_inquiries_equals_buckets_and_is_zero_where_there_is_none(pairs, lengths):
    tokens, total = sum(n for n, _ in pairs), sum(lengths)
    q, k, v = random(tokens, HEADS, DIM), random(total, HEADS, DIM, seed=1), random(total, HEADS, DIM, seed=2)

    def run(attention):
        return attend_inquiry(q, k, v, layout_of(pairs, attention), lengths)

    packed, buckets = both(run, [q, k, v])
    torch.testing.assert_close(packed, buckets)
    silent = torch.tensor([lengths[g] == 0 for n, g in sorted(pairs, key=lambda pair: pair[1]) for _ in range(n)])
    assert not packed[0][silent].any()


def test_indices_are_made_once_and_nothing_waits_for_the_device():
    layout = layout_of([(5, 0), (3, 1), (5, 1)], "varlen")
    q, k, v = (random(13, HEADS, DIM, seed=seed) for seed in range(3))
    context = random(4, HEADS, DIM), random(4, HEADS, DIM, seed=1)
    with without_gpu() as patch:
        patch.setattr(varlen, "run_varlen_kernel", lambda q, *rest: q)
        attend_segments(q, k, v, layout, "region", [context], [(3, 1)])
        for name in ("to_device", "_cumulative_lengths"):
            patch.setattr(varlen, name, lambda *args: pytest.fail("made again"))
        with no_synchronisation():
            attend_segments(q, k, v, layout, "region", [context], [(3, 1)])


def test_the_kernel_is_chosen_by_what_it_can_do_and_says_why(monkeypatch):
    q = torch.zeros(4, 2, 8, dtype=torch.bfloat16)
    assert "CUDA" in choose_kernel(q, [3, 1], False, False).why
    with pytest.raises(BadConfig, match="attention 'varlen' cannot be used: the kernel is for CUDA, not cpu"):
        choose_kernel(q, [3, 1], False, False, "varlen")
    monkeypatch.setattr(varlen, "varlen_unsupported_reason", lambda q: "")
    assert choose_kernel(q, [3, 1], False, False).kernel == "varlen"
    assert choose_kernel(q, [2, 2], False, False).kernel == "buckets", "equally long segments are one batch already"
    assert choose_kernel(q, [2, 2], False, True).kernel == "varlen"
    assert choose_kernel(q, [2, 2], False, False, "varlen").kernel == "varlen"
    assert choose_kernel(q, [3, 1], False, False, "buckets").kernel == "buckets"
    for wanted in ("auto", "varlen"):
        assert "bias" in choose_kernel(q, [3, 1], True, False, wanted).why
        assert "multiple of 8" in choose_kernel(q.new_zeros(4, 2, 12), [3, 1], False, False, wanted).why
        assert choose_kernel(q.new_zeros(4, 2, 264), [3, 1], False, False, wanted).kernel == "buckets"


@pytest.mark.parametrize("allowed", [False, True])
def test_cudnn_takes_part_only_where_it_is_allowed(monkeypatch, allowed):
    """torch's varlen function keeps cuDNN out exactly where a window is given."""
    windows, before = [], torch.backends.cuda.cudnn_sdp_enabled()
    kernels = importlib.import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(kernels, "varlen_attn", lambda q, *rest, window_size, **named: windows.append(window_size) or q)
    starts = torch.tensor([0, 3, 4], dtype=torch.int32)
    try:
        varlen.allow_cudnn_attention(allowed)
        varlen.run_varlen_kernel(*(torch.zeros(4, 2, 8) for _ in "qkv"), starts, starts, 3, 3, None)
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert windows == [(-1, -1) if allowed else (3, 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("partition", ["region", "group"])
def test_on_a_gpu_both_kernels_agree_and_the_packed_one_waits_for_nothing(partition):
    pairs, lengths = [(70, 0), (33, 1), (5, 0), (150, 2)], (4, 0, 9)
    tokens, device = 258, torch.device("cuda")

    def half(*shape, seed):
        return random(*shape, seed=seed).detach().to(device, torch.bfloat16).requires_grad_()

    q, k, v = (half(tokens, HEADS, 64, seed=seed) for seed in range(3))
    context = half(13, HEADS, 64, seed=3), half(13, HEADS, 64, seed=4)
    found = {}
    for attention in ("varlen", "buckets"):
        layout = layout_of(pairs, attention)
        for repeat in range(2):
            torch.cuda.set_sync_debug_mode("error" if repeat else "default")
            out = attend_segments(q, k, v, layout, partition, [context], [lengths]) + attend_inquiry(
                q, *context, layout, lengths
            )
            grads = torch.autograd.grad(out.float().square().sum(), (q, k, v, *context))
            torch.cuda.set_sync_debug_mode("default")
        found[attention] = (out, *grads)
    for packed, buckets in zip(found["varlen"], found["buckets"], strict=True):
        assert (packed.float() - buckets.float()).norm() <= 2e-2 * buckets.float().norm()
