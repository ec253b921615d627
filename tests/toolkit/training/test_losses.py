"""Log-probabilities of produced tokens, beside what a softmax written out gives."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vilavt_toolkit.training.losses import logprobs_and_entropy, target_logprobs, target_logprobs_and_hits

IDS = torch.tensor([[0, 2, 1, 3], [1, 1, 0, 2]])
BATCH = SimpleNamespace(ids=IDS, targets=torch.tensor([1, 3, 6]))
"""The produced tokens: places 1 and 3 of the first row, place 2 of the second."""
PREDICTS, TOKENS = [(0, 0), (0, 2), (1, 1)], [2, 3, 0]
"""Where the logits of each are, one place before it, and which token it is."""


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_token_is_predicted_by_the_place_before_it_at_the_temperature(logits, temperature):
    expected = [
        math.log((logits[place].detach() / temperature).softmax(0)[token])
        for place, token in zip(PREDICTS, TOKENS, strict=True)
    ]
    assert target_logprobs(logits, BATCH, temperature).tolist() == pytest.approx(expected, rel=1e-5)
    assert logprobs_and_entropy(logits, BATCH, temperature)[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert target_logprobs(logits.bfloat16(), BATCH).dtype == torch.float32


def test_a_hit_is_a_token_that_is_the_likeliest():
    logits = torch.zeros(2, 4, 5)
    logits[0, 0, 2] = logits[0, 2, 1] = logits[1, 1, 0] = 1.0
    logprobs, hits = target_logprobs_and_hits(logits, BATCH)
    assert hits.tolist() == [True, False, True]
    assert torch.equal(logprobs, target_logprobs(logits, BATCH))


def test_entropy_is_in_nats_at_the_temperature_and_has_no_gradient(logits):
    _, entropy = logprobs_and_entropy(logits, BATCH, 2.0)
    for place, value in zip(PREDICTS, entropy.tolist(), strict=True):
        p = (logits[place] / 2.0).softmax(0)
        assert value == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert not entropy.requires_grad
    even, sure = torch.zeros(2, 4, 5), torch.zeros(2, 4, 5)
    sure[..., 1] = 1e4
    assert logprobs_and_entropy(even, BATCH, 1.0)[1].tolist() == pytest.approx([math.log(5)] * 3)
    assert logprobs_and_entropy(sure, BATCH, 1.0)[1].tolist() == [0.0] * 3


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_neither_values_nor_gradients(logits, chunk):
    whole, entropy = logprobs_and_entropy(logits, BATCH, 0.7)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    logprobs, parts = logprobs_and_entropy(logits, BATCH, 0.7, chunk)
    (gradient,) = torch.autograd.grad(logprobs.sum(), logits)
    assert torch.equal(logprobs, whole) and torch.equal(parts, entropy) and torch.equal(gradient, expected)
