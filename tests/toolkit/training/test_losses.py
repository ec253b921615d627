"""Log-probabilities, hits, entropies and the schedule, each beside numbers computed another way."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vilavt_toolkit.training.losses import logprobs_and_entropy, target_logprobs, target_logprobs_and_hits
from vilavt_toolkit.training.schedule import learning_rate_factor

# Two rows of three columns over a vocabulary of three; the model wrote columns 1 and 2 of row 0, column 2 of row 1.
LOGITS = torch.log(
    torch.tensor(
        [[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]], [[0.2, 0.2, 0.6], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]]
    )
)
BATCH = SimpleNamespace(ids=torch.tensor([[2, 0, 1], [0, 0, 1]]), targets=torch.tensor([1, 2, 5]))
PROBABILITIES = [0.5, 0.2, 0.5]
HITS = [True, False, True]


def schedule(name: str = "linear", warmup: int = 0) -> SimpleNamespace:
    return SimpleNamespace(schedule=name, warmup_steps=warmup)


def test_a_token_is_predicted_by_the_column_before_it():
    assert target_logprobs(LOGITS, BATCH).exp().tolist() == pytest.approx(PROBABILITIES)


def test_log_probabilities_are_float32_whatever_the_logits_are():
    found = target_logprobs(LOGITS.to(torch.bfloat16), BATCH)
    assert found.dtype == torch.float32
    assert found.exp().tolist() == pytest.approx(PROBABILITIES, abs=0.01)


def test_a_temperature_divides_logits():
    square_roots = LOGITS.exp().sqrt()
    expected = (square_roots / square_roots.sum(-1, keepdim=True)).flatten(0, 1)[[0, 1, 4], [0, 1, 1]]
    assert target_logprobs(LOGITS, BATCH, 2.0).exp().tolist() == pytest.approx(expected.tolist())
    found, _ = logprobs_and_entropy(LOGITS, BATCH, 2.0)
    assert found.exp().tolist() == pytest.approx(expected.tolist())


def test_a_hit_is_a_token_that_is_the_likeliest():
    logprobs, hits = target_logprobs_and_hits(LOGITS, BATCH)
    assert hits.tolist() == HITS
    assert logprobs.exp().tolist() == pytest.approx(PROBABILITIES)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4096])
def test_entropies_are_those_of_the_distribution_that_was_drawn_from(chunk):
    _, entropy = logprobs_and_entropy(LOGITS, BATCH, 1.0, chunk)
    drawn_from = LOGITS.exp().flatten(0, 1)[[0, 1, 4]]
    by_hand = [-sum(p * math.log(p) for p in row) for row in drawn_from.tolist()]
    assert entropy.tolist() == pytest.approx(by_hand)
    assert not entropy.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [1, 2])
def test_pieces_change_neither_values_nor_gradients(chunk, temperature):
    gradients, values = [], []
    for size in (chunk, 4096):
        logits = LOGITS.clone().requires_grad_()
        logprobs, entropy = logprobs_and_entropy(logits, BATCH, temperature, size)
        (logprobs * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        gradients.append(logits.grad)
        values.append((logprobs.detach(), entropy))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    for pieces, whole in zip(*values, strict=True):
        assert torch.allclose(pieces, whole, atol=1e-6)


def test_warm_up_rises_in_equal_steps_to_the_whole_rate():
    assert [learning_rate_factor(schedule(warmup=4), step, 12) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedule_runs_from_the_end_of_warm_up_to_the_last_step(name, rates, warmup):
    found = [learning_rate_factor(schedule(name, warmup), warmup + step, warmup + 4) for step in range(5)]
    assert found == pytest.approx(rates, abs=1e-12)


def test_a_run_that_is_all_warm_up_has_a_rate_after_it():
    assert learning_rate_factor(schedule(warmup=4), 4, 4) == 1.0
