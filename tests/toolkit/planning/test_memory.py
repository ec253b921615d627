"""Memory is counted while it lives, by what it is for and by phase."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.planning.rates import STATED, Rates, Work, find_rates, parse_memory
from vilavt_toolkit.planning.recording import StepRecorder
from vilavt_toolkit.planning.shapes import run_on_shapes


def test_storages_count_from_their_making_to_their_end_and_views_do_not():
    recorder = StepRecorder(vocab_size=100, rates=STATED["h200"])
    with run_on_shapes(recorder):
        first = torch.empty(1024, 256)
        view = first.view(256, 1024)[:10]
        second = first + 1
        del first
        assert recorder.memory.total == 2 << 20, "the view holds the first"
        del view, second
    assert recorder.memory.total == 0
    assert recorder.memory.peak.bytes == 2 << 20


def test_kinds_are_told_apart():
    recorder = StepRecorder(vocab_size=1000, rates=STATED["h200"])
    with run_on_shapes(recorder):
        head = nn.Linear(512, 1000, bias=False)
        recorder.mark_weights(head)
        recorder.memory.forget_peaks()
        hidden = torch.empty(128, 512)
        cast = head.weight.to(torch.bfloat16)
        logits = head(hidden)
    kinds = recorder.memory.peak.by_kind
    assert kinds["weights"] == 512 * 1000 * 4 and kinds["cast weights"] == 512 * 1000 * 2
    assert kinds["logits"] == 128 * 1000 * 4 and kinds["activations"] == 128 * 512 * 4
    assert logits.shape == (128, 1000) and cast.dtype == torch.bfloat16


@pytest.mark.parametrize("causal", [False, True])
def test_operations_are_those_of_the_formulas(causal):
    recorder = StepRecorder(vocab_size=0, rates=STATED["h200"])
    with run_on_shapes(recorder):
        query = torch.empty(2, 4, 64, 32, requires_grad=True)
        (query @ torch.empty(32, 16)).sum()
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=causal).sum().backward()
    operations = sum((cost.operations for cost in recorder.costs.values()), start=Counter())
    # Two products in the forward pass, five in the backward pass; half of each is hidden by a causal mask.
    assert operations["attention float32"] == 7 * 2 * (2 * 4) * 64 * 64 * 32 // (2 if causal else 1)
    assert operations["matrix float32"] == 2 * (2 * 4 * 64) * 32 * 16


def test_the_slowest_of_computing_moving_and_starting_takes_the_time():
    rates = Rates("mine", 0, half_rate=4e12, single_rate=1e12, half_attention_rate=2e12, single_attention_rate=5e11,
                  bandwidth=1e9, launch_seconds=1e-6)  # fmt: skip
    assert rates.seconds(Work("matrix", 10**12, 0, "float32")) == 1.0
    assert rates.seconds(Work("matrix", 10**12, 0, "bfloat16")) == 0.25
    assert rates.seconds(Work("causal attention", 10**12, 0, "bfloat16")) == 0.5
    assert rates.seconds(Work("matrix", 10**12, 5 * 10**9, "float32")) == 5.0
    assert rates.seconds(Work("simple", 0, 8, "float32")) == 1e-6


@pytest.mark.parametrize(
    ("text", "size"),
    [("141GB", 141 * 10**9), ("80GiB", 80 << 30), ("24g", 24 * 10**9), ("1.5 TB", 15 * 10**11), ("512", 512)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0GB", "3 apples"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="141GB or 80GiB"):
        parse_memory(text)


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="h200, h100"):
        find_rates("tpu")
