"""The pure parts of the policy update."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_toolkit.training.reinforcement.policy_math import (
    find_flat_groups,
    k1_divergence,
    k2_divergence,
    k3_divergence,
    probability_ratio,
    repeat_per_token,
    weighted_sum,
)

logprobs = st.floats(-30, 0, width=32)


def test_k1_and_k2_of_a_half_against_a_quarter_and_within_a_limit():
    half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert k1_divergence(half, quarter).item() == pytest.approx(0.69315, abs=1e-5)
    assert k2_divergence(half, quarter).item() == pytest.approx(0.24023, abs=1e-5)
    assert k1_divergence(quarter, half, limit=0.5).item() == -0.5
    assert k2_divergence(half, quarter, limit=0.1).item() == pytest.approx(0.1)


def expected_gradient(loss: bool, estimate, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The expected gradient by the policy's logits of an estimate in the loss, or as a cost of REINFORCE."""
    logits = policy.log().requires_grad_()
    logp = logits.log_softmax(-1)
    values = estimate(logp, reference.log())
    # The weights are the probabilities of sampling, through which no gradient flows.
    (policy * (values if loss else values.detach() * logp)).sum().backward()
    return logits.grad


def test_estimates_that_are_allowed_have_a_gradient_of_a_divergence_and_the_others_do_not():
    """k1 in the reward and k2 in the loss: KL(policy || reference). k3 in the loss: KL(reference || policy)."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    logits = policy.log().requires_grad_()
    probabilities = logits.softmax(-1)
    divergence = (probabilities * (probabilities / reference).log()).sum()
    (right,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    (other,) = torch.autograd.grad((reference * (reference / probabilities).log()).sum(), logits)
    torch.testing.assert_close(expected_gradient(False, k1_divergence, policy, reference), right)
    torch.testing.assert_close(expected_gradient(True, k2_divergence, policy, reference), right)
    torch.testing.assert_close(expected_gradient(True, k3_divergence, policy, reference), other)
    assert expected_gradient(True, k1_divergence, policy, reference).abs().max() < 1e-6
    near = (policy.log() + 1e-2 * torch.tensor([1.0, -1.0, 2.0])).softmax(-1)
    pull = expected_gradient(False, k1_divergence, policy, near).norm()
    for estimate in (k2_divergence, k3_divergence):
        assert expected_gradient(False, estimate, policy, near).norm() < 0.05 * pull, "no pull near the reference"


def test_k3_of_a_half_against_a_quarter():
    assert k3_divergence(torch.tensor([0.5]).log(), torch.tensor([0.25]).log()).item() == pytest.approx(
        0.19315, abs=1e-5
    )


@settings(deadline=None)
@given(logprobs, logprobs)
def test_k3_is_never_negative_and_nothing_between_equal_policies(first, second):
    a, b = torch.tensor([first]), torch.tensor([second])
    assert k3_divergence(a, b).item() >= 0
    assert k3_divergence(a, a).item() == 0


def test_k3_pulls_towards_the_reference_and_is_flat_there():
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    k3_divergence(logp, torch.tensor([-2.0, -2.0, -2.0])).sum().backward()
    assert logp.grad[0] > 0 and logp.grad[1] == 0 and logp.grad[2] < 0


def test_the_mean_of_k3_over_samples_is_the_divergence():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    exact = (policy * (policy / reference).log()).sum()
    expectation = (policy * k3_divergence(policy.log(), reference.log())).sum()
    torch.testing.assert_close(expectation, exact)


@pytest.mark.parametrize("gap", [-1e4, -100, 100, 1e4])
def test_far_apart_both_stay_finite_with_finite_gradients(gap):
    logp = torch.tensor([0.0], requires_grad=True)
    for value in (probability_ratio(logp, torch.tensor([gap])), k3_divergence(logp, torch.tensor([gap]))):
        (gradient,) = torch.autograd.grad(value.sum(), logp)
        assert value.isfinite().all() and gradient.isfinite().all()


def test_the_ratio_is_of_probabilities_and_held_at_the_exponential_of_20():
    logp, old = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.4]).log()
    assert probability_ratio(logp, old).tolist() == pytest.approx([2.0, 0.25])
    far = probability_ratio(torch.tensor([0.0, -100.0, -20.0]), torch.tensor([-100.0, 0.0, -1.0]))
    assert far.tolist() == pytest.approx([math.exp(20), math.exp(-20), math.exp(-19)])


def test_a_token_at_the_limit_of_k3_is_not_pulled():
    logp = torch.zeros(2, requires_grad=True)
    divergence = k3_divergence(logp, torch.tensor([5.0, 1.0]), limit=10)
    assert divergence.tolist() == pytest.approx([10, math.exp(1) - 2])
    divergence.sum().backward()
    assert logp.grad.tolist() == pytest.approx([0, 1 - math.exp(1)])


def test_k3_is_exact_up_to_a_gap_of_20_and_far_beyond_on_the_other_side():
    gaps = torch.tensor([19.0, 20.0, 50.0, -50.0])
    expected = [math.exp(19) - 20, math.exp(20) - 21, math.exp(20) - 21, 49.0]
    assert k3_divergence(torch.zeros(4), gaps).tolist() == pytest.approx(expected, rel=1e-6)
    near = k3_divergence(torch.zeros(1), torch.tensor([1e-3]))
    assert near.item() == pytest.approx(5e-7, rel=0.1), "a policy near its reference keeps its digits"


@pytest.mark.parametrize(
    ("rewards", "is_flat"),
    [
        ([0, 5e-7], True),
        ([0, 2e-6], False),
        ([1e6, 1e6 + 0.5], True),
        ([-1e6, -1e6 - 0.5], True),
        ([1e6, 1e6 + 2], False),
    ],
)
def test_rounding_is_a_millionth_of_the_largest_reward_or_of_one(rewards, is_flat):
    assert find_flat_groups(torch.tensor([rewards])).tolist() == [is_flat]


def test_a_weighted_sum_is_of_every_sequences_tokens():
    assert weighted_sum(torch.tensor([1.0, 2.0, 4.0]), [3.0, -0.5], [2, 1]).item() == 7.0


def test_groups_are_flat_where_all_rewards_are_equal_but_for_rounding():
    rewards = torch.tensor([[0.1 + 0.2, 0.3], [1, 1], [0, 0], [0, 0.01], [1, 0]])
    assert find_flat_groups(rewards).tolist() == [True, True, True, False, False]


def test_every_produced_token_gets_its_sequences_value():
    assert repeat_per_token([1.5, -1, 2], [2, 0, 1]).tolist() == [1.5, 1.5, 2]
    assert repeat_per_token(torch.tensor([1.5, -1, 2], dtype=torch.float64), [0, 0, 0]).tolist() == []


def test_positions_that_were_not_produced_have_exactly_no_gradient():
    logits = torch.randn(2, 5, requires_grad=True)
    produced = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
    weighted_sum(logits.flatten()[produced.flatten().nonzero()[:, 0]], [0.5, 0.25], [2, 3]).backward()
    assert torch.equal(logits.grad, torch.tensor([[0, 0.5, 0.5, 0, 0], [0, 0, 0.25, 0.25, 0.25]]))
