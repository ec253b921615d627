"""Advantages, clipped losses, their gradients and k3 equal the paper's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vilavt_components.advantages.grpo import GRPO, GRPOConfig
from vilavt_components.advantages.rloo import RLOO
from vilavt_components.policy_losses.ppo_clip import PPOClip, PPOClipConfig
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.training.reinforcement.policy_math import find_flat_groups, k3_divergence, weighted_sum

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "policy.safetensors")


def groups():
    """Rows of the rollouts of each prompt group, [P, G], and their rewards [P, G]."""
    group = GOLDEN["grpo.group"]
    rows = torch.stack([(group == number).nonzero()[:, 0] for number in range(3)])
    return rows, GOLDEN["grpo.token_level_rewards"].sum(1)[rows]


@pytest.mark.parametrize("mask", ["response_mask", "multi_turn_mask"])
def test_grpo(mask):
    rows, rewards = groups()
    produced = GOLDEN[f"grpo.{mask}"]
    found = torch.empty(12)
    found[rows] = GRPO(GRPOConfig(eps=1e-6)).compute_advantages(rewards)
    expected = GOLDEN["grpo.advantages" if mask == "response_mask" else "grpo.advantages_multi_turn_mask"]
    torch.testing.assert_close(found[:, None] * produced, expected, atol=1e-5, rtol=1e-5)


def test_rloo():
    rows, rewards = groups()
    found = torch.empty(12)
    found[rows] = RLOO(NoSettings()).compute_advantages(rewards)
    expected = GOLDEN["rloo.advantages"]
    torch.testing.assert_close(found[:, None] * GOLDEN["grpo.response_mask"], expected, atol=1e-5, rtol=1e-5)


def test_the_group_of_equal_rewards_is_the_flat_one():
    assert find_flat_groups(groups()[1]).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("case", "logp", "mask", "clips"),
    [
        ("ppo", "ppo.log_probs", "ppo.response_mask", (0.2, 0.3, 3.0)),
        ("ppo_b", "ppo.log_probs", "ppo_b.response_mask", (0.2, 0.2, 1.5)),
        ("ppo_c", "ppo_c.log_probs", "ppo.response_mask", (0.2, 0.3, 3.0)),
    ],
)
def test_the_clipped_loss_its_gradient_and_its_clip_fraction(case, logp, mask, clips):
    produced = GOLDEN[mask].bool()
    low, high, dual = clips
    loss = PPOClip(PPOClipConfig(eps_low=low, eps_high=high, dual_clip=dual, normalise="tokens"))
    lengths = produced.sum(1).tolist()
    weights = GOLDEN[logp].clone().requires_grad_()
    tokens, clipped = loss.token_losses(
        weights[produced], GOLDEN["ppo.old_log_probs"][produced], GOLDEN["ppo.advantages"][produced]
    )
    total = weighted_sum(tokens, loss.sequence_weights(lengths), lengths)
    total.backward()
    torch.testing.assert_close(total, GOLDEN[f"{case}.loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.grad, GOLDEN[f"{case}.grad_log_probs"], atol=1e-6, rtol=1e-5)
    assert not weights.grad[~produced].any()
    fraction = GOLDEN[f"{case}.clipfrac_higher"] + GOLDEN[f"{case}.clipfrac_lower"]
    torch.testing.assert_close(clipped.float().mean(), fraction, atol=1e-5, rtol=0)


def test_a_step_without_produced_tokens_has_a_loss_of_zero():
    none = torch.zeros(0)
    loss = PPOClip(PPOClipConfig(normalise="tokens"))
    tokens, _ = loss.token_losses(none, none, none)
    assert weighted_sum(tokens, loss.sequence_weights([0, 0]), [0, 0]) == GOLDEN["ppo_zero_mask.loss"] == 0


def test_k3():
    logp, reference = GOLDEN["ppo.log_probs"], GOLDEN["kl.ref_log_probs"]
    torch.testing.assert_close(k3_divergence(logp, reference), GOLDEN["kl.low_var_kl"], atol=1e-5, rtol=1e-5)
    far = k3_divergence(20 * logp, reference, limit=10)
    torch.testing.assert_close(far, GOLDEN["kl.low_var_kl_clamped"], atol=1e-5, rtol=1e-5)
