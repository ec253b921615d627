"""The mismatch of sampling and update: measured by turn, and corrected by truncated or masked importance sampling."""

from __future__ import annotations

import math

import pytest
import torch

from vilavt_toolkit.training.reinforcement.metrics import TokenAverages
from vilavt_toolkit.training.reinforcement.mismatch import mismatch_weights, number_turns

OLD = torch.tensor([0.5, 0.3, 0.8, 0.2, 0.9]).log()
SAMPLED = torch.tensor([0.25, 0.1, 0.4, 0.4, 0.9]).log()
"""Ratios 2, 3 of a first sequence and 2, 0.5, 1 of a second."""


@pytest.mark.parametrize(
    ("kind", "level", "weights", "beyond"),
    [
        ("truncate", "token", [2, 2.5, 2, 0.5, 1], [0, 1, 0, 0, 0]),
        ("mask", "token", [2, 0, 2, 0.5, 1], [0, 1, 0, 0, 0]),
        ("truncate", "sequence", [2.5, 2.5, 1, 1, 1], [1, 1, 0, 0, 0]),
        ("mask", "sequence", [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]),
    ],
)
def test_weights_are_ratios_of_tokens_or_products_over_sequences_and_bounded(kind, level, weights, beyond):
    found, is_beyond = mismatch_weights(OLD.clone().requires_grad_(), SAMPLED, [2, 3], kind, level, 2.5)
    assert found.tolist() == pytest.approx(weights, abs=1e-5) and not found.requires_grad
    assert is_beyond.tolist() == [bool(value) for value in beyond]


def test_a_ratio_without_bounds_stays_finite():
    far = torch.tensor([0.0, -1e4])
    for level in ("token", "sequence"):
        found, _ = mismatch_weights(far, far.flip(0), [1, 1], "truncate", level, 1e30)
        assert found.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_turns_are_runs_of_produced_tokens():
    assert number_turns([False, True, True, False, False, True, False]) == [0, 0, 1]
    assert number_turns([True]) == [0] and number_turns([False, False]) == []


def test_means_by_turn_are_over_the_tokens_of_that_turn_in_all_micro_batches():
    averages = TokenAverages()
    averages.add(3, other=torch.ones(3))
    averages.add_turns("gap", [0, 0, 1], torch.tensor([1.0, 3.0, 5.0]))
    averages.add(3, other=torch.ones(3))
    averages.add_turns("gap", [0, 2, 2], torch.tensor([8.0, 1.0, 2.0]))
    averages.add_turns("gap", [], torch.zeros(0))
    means = {name: float(value) for name, value in averages.compute_means().items()}
    assert means == pytest.approx({"other": 1, "gap/turn_1": 4, "gap/turn_2": 5, "gap/turn_3": 1.5})


def test_our_own_engine_has_no_mismatch_in_any_turn_and_the_correction_changes_nothing(rl, rl_recipe):
    settings = ("rl.inner_epochs=1", "rl.temperature=0.8")
    plain = rl.stepped(rl.module_of(rl_recipe, *settings), 1)
    (update,) = (row for row in plain.logged if "loss" in row)
    gaps = {name: value for name, value in update.items() if name.startswith("logprob_gap/turn_")}
    assert len(gaps) > 1 and max(gaps.values()) < 1e-4 and update["logprob_gap_max"] < 1e-4
    for kind in ("truncate", "mask"):
        for level in ("token", "sequence"):
            keys = (f"rl.mismatch={kind}", f"rl.mismatch_level={level}")
            other = rl.stepped(rl.module_of(rl_recipe, *settings, *keys), 1)
            (found,) = (row for row in other.logged if "loss" in row)
            assert found["mismatch_weight"] == pytest.approx(1, abs=1e-4) and found["mismatch_beyond"] == 0
            for name, gradient in plain.grads.items():
                assert (other.grads[name] - gradient).abs().max() <= 1e-3 * gradient.abs().max() + 1e-7, name


def test_what_was_sampled_from_another_distribution_is_weighed_in_loss_and_gradient(rl, rl_recipe):
    """Every token was recorded at half the probability of the update: weights 2, bounded to 1.5, or 0."""
    grads, logged = {}, {}
    for kind in ("none", "truncate", "mask"):
        module = rl.module_of(rl_recipe, "rl.inner_epochs=1", f"rl.mismatch={kind}", "rl.mismatch_limit=1.5")
        collect = module.collector.collect

        def halved(*arguments, collect=collect):
            groups = collect(*arguments)
            for rollout in (rollout for group in groups for rollout in group):
                trajectory = rollout.trajectory
                trajectory.logprobs[:] = [value - math.log(2) for value in trajectory.logprobs]
            return groups

        module.collector.collect = halved
        rl.stepped(module, 1)
        grads[kind], (logged[kind],) = module.grads, (row for row in module.logged if "loss" in row)
    assert logged["none"]["logprob_gap/turn_1"] == pytest.approx(math.log(2), abs=1e-4)
    assert (logged["truncate"]["mismatch_weight"], logged["mask"]["mismatch_weight"]) == (1.5, 0)
    assert logged["truncate"]["mismatch_beyond"] == 1
    for name, gradient in grads["none"].items():
        assert torch.allclose(grads["truncate"][name], 1.5 * gradient, rtol=1e-4, atol=1e-7), name
        assert not grads["mask"][name].any()
