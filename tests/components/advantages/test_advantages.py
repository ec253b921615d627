"""Advantages: the hand cases, and what holds for any rewards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.advantages.dr_grpo import DrGRPO
from vilavt_components.advantages.grpo import GRPO, GRPOConfig
from vilavt_components.advantages.rloo import RLOO
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.settings import NoSettings

ALL = {"grpo": GRPO(GRPOConfig()), "rloo": RLOO(NoSettings()), "dr_grpo": DrGRPO(NoSettings())}
LINEAR = ("rloo", "dr_grpo")

groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size), min_size=1, max_size=4
    ).map(torch.tensor)
)
every = pytest.mark.parametrize("name", ALL)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [1.3053, 0.2611, -0.7832, -0.7832]),
        ("rloo", [0.8333, 0.1667, -0.5, -0.5]),
        ("dr_grpo", [0.625, 0.125, -0.375, -0.375]),
    ],
)
def test_one_good_one_half_and_two_bad_rollouts(name, expected):
    found = ALL[name].compute_advantages(torch.tensor([[1, 0.5, 0, 0]]))
    torch.testing.assert_close(found, torch.tensor([expected]), atol=5e-5, rtol=0)


@every
@settings(deadline=None)
@given(groups, st.randoms(use_true_random=False))
def test_a_permuted_group_has_permuted_advantages(name, rewards, random):
    order = random.sample(range(rewards.shape[1]), rewards.shape[1])
    found = ALL[name].compute_advantages(rewards)
    torch.testing.assert_close(ALL[name].compute_advantages(rewards[:, order]), found[:, order], atol=1e-3, rtol=1e-4)


@every
@settings(deadline=None)
@given(groups)
def test_advantages_of_a_group_cancel(name, rewards):
    assert ALL[name].compute_advantages(rewards).sum(1).abs().max() < 1e-2


@every
@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=6), st.integers(-4, 4))
def test_a_constant_added_to_all_rewards_changes_nothing(name, rewards, constant):
    exact = torch.tensor([rewards], dtype=torch.float64) / 8
    found = ALL[name].compute_advantages(exact + constant)
    torch.testing.assert_close(found, ALL[name].compute_advantages(exact), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", LINEAR)
@settings(deadline=None)
@given(groups, st.floats(0.1, 10))
def test_advantages_without_a_scale_grow_with_the_rewards(name, rewards, factor):
    found = ALL[name].compute_advantages(rewards * factor)
    torch.testing.assert_close(found, ALL[name].compute_advantages(rewards) * factor, atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=6).filter(lambda r: len(set(r)) > 1), st.floats(0.5, 10))
def test_grpo_forgets_the_scale_of_the_rewards(rewards, factor):
    exact = torch.tensor([rewards], dtype=torch.float64)
    torch.testing.assert_close(
        ALL["grpo"].compute_advantages(exact * factor), ALL["grpo"].compute_advantages(exact), atol=2e-3, rtol=2e-3
    )


@every
def test_a_group_of_one_is_refused(name):
    with pytest.raises(UsageError) as caught:
        ALL[name].compute_advantages(torch.ones(3, 1))
    assert (
        str(caught.value)
        == "a prompt group of one rollout has no others to compare with. Set rl.group_size to 2 or more."
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [[0.5**0.5, -(0.5**0.5)], [4 * 0.125**0.5, -4 * 0.125**0.5]]),
        ("rloo", [[1, -1], [4, -4]]),
        ("dr_grpo", [[0.5, -0.5], [2, -2]]),
    ],
)
def test_every_group_has_its_own_mean_and_its_own_scale(name, expected):
    found = ALL[name].compute_advantages(torch.tensor([[1.0, 0], [7, 3]]))
    scale = torch.tensor([[1.0], [2.0]]) if name == "grpo" else torch.ones(2, 1)
    torch.testing.assert_close(found, torch.tensor(expected) / scale, atol=2e-4, rtol=0)


def test_grpo_adds_its_epsilon_to_the_deviation():
    found = GRPO(GRPOConfig(eps=1.0)).compute_advantages(torch.tensor([[1.0, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.5]]) / (0.5**0.5 + 1))
