"""The contract tests fail on rewards, advantages and policy losses that break their contract."""

import random

import pytest
import torch

from vilavt_toolkit.contracts import Advantage, PolicyLoss, Reward, RewardConfig
from vilavt_toolkit.registry import advantages, policy_losses, rewards
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.rewards import reward_function
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing import check_advantage, check_policy_loss, check_reward
from vilavt_toolkit.testing.isolation import isolated_registries

load_builtin()


def right(sample, trajectory):
    return float(trajectory.answer == sample.answer)


def infinite(sample, trajectory):
    return float("inf") if trajectory.answer is None else 0.0


def too_generous(sample, trajectory):
    return 2 * right(sample, trajectory)


def rewards_and_costs(sample, trajectory):
    return 2 * right(sample, trajectory) - 1


def throws_dice(sample, trajectory):
    return random.random()


def eats_turns(sample, trajectory):
    return float(bool(trajectory.turns and trajectory.turns.pop()))


def test_a_correct_reward_passes():
    with isolated_registries():
        reward_function("under_test")(right)
        check_reward("under_test")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (infinite, "the score is inf"),
        (too_generous, "the score is 2"),
        (rewards_and_costs, "neither reward nor cost"),
        (throws_dice, "draws random numbers"),
        (eats_turns, "changes the sample or the trajectory"),
    ],
)
def test_a_broken_reward_is_caught(function, words):
    with isolated_registries(), pytest.raises(AssertionError, match=words):
        reward_function("under_test")(function)
        check_reward("under_test")


def test_a_reward_without_a_weight_is_caught():
    class Weightless(Reward):
        def __init__(self, config):
            pass

        @classmethod
        def tiny(cls):
            return NoSettings()

        def score(self, sample, trajectory):
            return 0.0

    with isolated_registries(), pytest.raises(AssertionError, match="has no weight"):
        rewards.register("under_test")(Weightless)
        check_reward("under_test")


def test_an_outsiders_reward_inherits_its_weight():
    assert RewardConfig(weight=0.25).weight == 0.25


def advantage(function):
    class Made(Advantage):
        def __init__(self, config):
            pass

        @classmethod
        def tiny(cls):
            return NoSettings()

        def compute_advantages(self, rewards):
            return function(rewards)

    return Made


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda r: r, "rewards plus 2"),
        (lambda r: r - r.mean(), "alone and with other groups"),
        (lambda r: r.mean(1, keepdim=True) - r, "a better rollout has a lower one"),
        (lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True), "not finite"),
        (lambda r: r - r[:, :1], "permuted groups"),
        (lambda r: r.mean(1), r"have advantages \[5\]"),
    ],
)
def test_a_broken_advantage_is_caught(function, words):
    with isolated_registries(), pytest.raises(AssertionError, match=words):
        advantages.register("under_test")(advantage(function))
        check_advantage("under_test")


class Reinforce(PolicyLoss):
    """A correct loss but for its clip, which clips nothing."""

    def __init__(self, config):
        pass

    @classmethod
    def tiny(cls):
        return NoSettings()

    def token_losses(self, logp, old, advantages):
        rho = (logp - old).clamp(-2, 2).exp()
        return -rho * advantages, (logp - old).abs() > 2

    def sequence_weights(self, lengths):
        return [1 / max(1, sum(lengths)) if length else 0.0 for length in lengths]


class ClimbsDown(Reinforce):
    def token_losses(self, logp, old, advantages):
        loss, clipped = super().token_losses(logp, old, advantages)
        return -loss, clipped


class HalvesTies(Reinforce):
    def token_losses(self, logp, old, advantages):
        loss, clipped = super().token_losses(logp, old, advantages)
        return torch.maximum(loss, -advantages), clipped


class SaysNothing(Reinforce):
    def token_losses(self, logp, old, advantages):
        loss, clipped = super().token_losses(logp, old, advantages)
        return loss, torch.zeros_like(clipped)


class Whitens(Reinforce):
    def token_losses(self, logp, old, advantages):
        loss, clipped = super().token_losses(logp, old, advantages)
        return loss - (loss - loss.mean()).detach(), clipped


class Overflows(Reinforce):
    def token_losses(self, logp, old, advantages):
        return -(logp - old).exp() * advantages, (logp - old).abs() > 2


class CountsEmptyOnes(Reinforce):
    def sequence_weights(self, lengths):
        return [1 / max(1, sum(lengths)) for _ in lengths]


class MeansOverMicroBatches(Reinforce):
    def token_losses(self, logp, old, advantages):
        loss, clipped = super().token_losses(logp, old, advantages)
        return loss / max(1, len(loss)), clipped


def check_loss(cls):
    with isolated_registries():
        policy_losses.register("under_test")(cls)
        check_policy_loss("under_test")


def test_a_correct_policy_loss_passes():
    check_loss(Reinforce)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (ClimbsDown, "the gradient on the first inner step"),
        (HalvesTies, "the gradient on the first inner step"),
        (SaysNothing, "a token that is not clipped has no gradient"),
        (Whitens, "among fewer others"),
        (Overflows, "a clipped token has a gradient|not finite"),
        (CountsEmptyOnes, "0 tokens weigh"),
        (MeansOverMicroBatches, "the gradient on the first inner step"),
    ],
)
def test_a_broken_policy_loss_is_caught(cls, words):
    with pytest.raises(AssertionError, match=words):
        check_loss(cls)
