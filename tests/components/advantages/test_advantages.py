"""Advantages: the hand cases, and what holds for any rewards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.advantages.dr_grpo import DrGRPO
from vilavt_components.advantages.gdpo import GDPO, GDPOConfig
from vilavt_components.advantages.grpo import GRPO, GRPOConfig
from vilavt_components.advantages.reinforce_pp import ReinforcePP, ReinforcePPConfig
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


# --- Advantages that compare a whole step ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [[0.68207, -0.40924, -1.50056, -1.50056], [0.68207, 0.68207, 0.68207, 0.68207]]),
        ("group", [[1.99367, 0.39873, -1.19620, -1.19620], [0, 0, 0, 0]]),
    ],
)
def test_reinforce_pp_divides_by_the_deviation_of_the_step(baseline, expected):
    found = ReinforcePP(ReinforcePPConfig(baseline=baseline)).compute_advantages(
        torch.tensor([[1, 0.5, 0, 0], [1, 1, 1, 1]])
    )
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=0)


RIGHT_AND_CHEAP = torch.tensor([[[1.0, 0], [1, -1], [0, 0], [0, -1]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("over_step", "expected"),
    [(False, [1.29882, 0.43294, -0.43294, -1.29882]), (True, [1.16179, 0.38726, -0.38726, -1.16179])],
)
def test_gdpo_compares_every_reward_by_itself_and_weighs_what_it_finds(over_step, expected):
    found = GDPO(GDPOConfig(over_step=over_step)).compare_scores(RIGHT_AND_CHEAP, [1.0, 0.5])
    torch.testing.assert_close(found, torch.tensor([expected]), atol=2e-5, rtol=0)


def test_gdpo_of_a_single_reward_divides_every_group_by_its_own_deviation():
    found = GDPO(GDPOConfig(over_step=False)).compute_advantages(torch.tensor([[1.0, 0, 0], [7, 3, 2]]))
    expected = [[1.15470, -0.57735, -0.57735], [1.13389, -0.37796, -0.75593]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)


def test_only_gdpo_tells_rollouts_apart_whose_different_rewards_have_one_sum():
    scores = torch.tensor([[[1.0, 0], [0, 1], [0, 1], [0, 0]]], dtype=torch.float64)
    of_grpo, of_gdpo = (part.compare_scores(scores, [1.0, 1.0])[0] for part in (ALL["grpo"], GDPO(GDPOConfig())))
    assert of_grpo[0] == of_grpo[1]
    # One of four was right, two of four had the form: to be right is rarer, and worth more.
    assert of_gdpo[0] > of_gdpo[1] + 0.1


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_the_weighted_sum_is_that_of_the_log_to_the_bit(values, weights):
    class Keeps(DrGRPO):
        def compute_advantages(self, rewards):
            return rewards

    scores = torch.tensor([[[value, 1 - value, value / 3] for value in values]], dtype=torch.float64)
    logged = [sum(w * s for w, s in zip(weights, row, strict=True)) for row in scores[0].tolist()]
    assert Keeps(NoSettings()).compare_scores(scores, weights)[0].tolist() == torch.tensor(logged).float().tolist()
