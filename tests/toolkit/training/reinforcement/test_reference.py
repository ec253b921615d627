"""The reference of reinforcement: the same start as a copy, on the CPU, or as the policy without its adapters."""

from __future__ import annotations

import copy

import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RecipeErrors
from vilavt_toolkit.models.adapters import list_adapted_layers
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.training.reinforcement.reference import Reference, trains_adapters_only

ADAPTERS = "rl.lora={rank: 2, targets: [language_model]}"
ALONE = (ADAPTERS, "rl.freeze=[encoder,modulator,inquiry_encoder,projector]")


def moved(rl, recipe, *overrides, reference):
    """A module with adapters that have moved away from the start, and a reference."""
    start = rl.livened(build(recipe))
    module = rl.module_of(recipe, *ALONE, "rl.inner_epochs=1", *overrides, model=copy.deepcopy(start))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in list_adapted_layers(module.model).values():
            weight = layer.lora_B["default"].weight
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    module.reference = reference(start)
    return module


KINDS = {
    "adapters off": lambda start: Reference(),
    "copy": Reference,
    "cpu": lambda start: Reference(start, stays_on_cpu=True),
}


@pytest.mark.parametrize("where", ["rl.kl_in=loss", "rl.kl_in=reward"])
def test_every_kind_of_reference_gives_the_same_divergence_loss_and_gradients(rl, rl_recipe, where):
    found = {}
    for kind, reference in KINDS.items():
        module = rl.stepped(moved(rl, rl_recipe, "rl.kl=0.3", where, reference=reference), 1)
        logged = {name: value for row in module.logged for name, value in row.items()}
        found[kind] = (logged["kl"], logged["loss"], module.grads)
    kl, loss, gradients = found["copy"]
    assert abs(kl) > 1e-4 and gradients
    for other_kl, other_loss, others in found.values():
        assert other_kl == pytest.approx(kl, rel=1e-5) and other_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_adapters_compute_and_learn_again_after_they_were_switched_off(rl, rl_recipe):
    module = moved(rl, rl_recipe, reference=KINDS["adapters off"])
    rows = rl.pending_of(module).rollouts
    batch = collate([row.trajectory for row in rows], [row.views for row in rows], module.model.language_model)
    trained = [weight.requires_grad for weight in module.model.parameters()]
    with torch.no_grad():
        before = plain_logprobs(module.model(batch), batch)
        with module.reference.lend(module.model) as lent:
            off = plain_logprobs(lent(batch), batch)
        after = plain_logprobs(module.model(batch), batch)
    assert torch.equal(before, after) and (before - off).abs().max() > 1e-3
    assert [weight.requires_grad for weight in module.model.parameters()] == trained


def test_adapters_can_be_switched_off_only_if_nothing_else_is_trained(rl, rl_recipe):
    assert trains_adapters_only(rl.module_of(rl_recipe, *ALONE).model)
    assert not trains_adapters_only(rl.module_of(rl_recipe, ADAPTERS).model)
    assert not trains_adapters_only(rl.module_of(rl_recipe).model)


@pytest.mark.parametrize("packing", [(), ("rl.pack_tokens=1500",)], ids=["rows of their own", "shared rows"])
def test_the_divergence_in_the_reward_is_the_sum_over_a_rollouts_tokens_and_lowers_its_advantage(
    rl, rl_recipe, packing
):
    settings = ("rl.kl=0.5", "rl.kl_in=reward", "rl.advantage=dr_grpo", *packing)
    module = moved(rl, rl_recipe, *settings, reference=KINDS["copy"])
    groups = module.collector.collect(0)
    learned = module._select_learned(groups)
    rows = [rollout for group in groups for rollout in group]
    assert len(learned) == len(rows)
    batch = collate([row.trajectory for row in rows], [row.session.views for row in rows], module.model.language_model)
    lengths = [sum(row.trajectory.produced) for row in rows]
    with torch.no_grad(), module.reference.lend(module.model) as start:
        gaps = plain_logprobs(module.model(batch), batch) - plain_logprobs(start(batch), batch)
    sums = torch.stack([part.sum() for part in gaps.split(lengths)])
    returns = (torch.tensor([row.reward for row in rows]) - 0.5 * sums).view(len(groups), -1)
    expected = (returns - returns.mean(1, keepdim=True)).flatten().tolist()
    assert sums.abs().max() > 0.01
    assert [row.advantage for row in learned] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rl.kl_estimator=k1"], "k1 has no expected gradient in the loss"),
        (["rl.kl_in=reward", "rl.kl_estimator=k3"], "k3 in the reward does not pull"),
        (["rl.kl_in=reward", "rl.kl_estimator=k2"], "k2 in the reward does not pull"),
    ],
)
def test_an_estimate_with_a_wrong_gradient_is_refused_with_the_reason(rl_recipe, overrides, words):
    with pytest.raises(RecipeErrors, match=words):
        load_recipe(rl_recipe, overrides)


def test_k2_in_the_loss_is_half_the_squared_distance_of_log_probabilities(rl, rl_recipe):
    """At a distance of d nats k2 is d^2 / 2, and k3 something else."""
    logged = {}
    for estimator in ("k2", "k3"):
        key = f"rl.kl_estimator={estimator}"
        module = moved(rl, rl_recipe, "rl.kl=0.3", key, reference=KINDS["copy"])
        buffer = rl.pending_of(module)
        rl.stepped(module, 1)
        logged[estimator] = next(row["kl"] for row in module.logged if "kl" in row)
        if estimator == "k2":
            fresh = moved(rl, rl_recipe, reference=KINDS["copy"])
            batch = buffer.collate_chunk(next(buffer.split_into_chunks(None)), fresh.model.language_model)
            with torch.no_grad(), fresh.reference.lend(fresh.model) as start:
                gaps = plain_logprobs(fresh.model(batch), batch) - plain_logprobs(start(batch), batch)
    assert logged["k2"] == pytest.approx(float(gaps.square().mean() / 2), rel=1e-3)
    assert logged["k3"] != pytest.approx(logged["k2"], rel=1e-3)
