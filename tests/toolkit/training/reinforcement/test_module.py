"""Reinforcement: the invariants of a policy update on a tiny random model whose rollouts zoom."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.contracts import Reward, Sample
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.training.losses import logprobs_and_entropy
from vilavt_toolkit.training.reinforcement.metrics import TokenAverages
from vilavt_toolkit.training.reinforcement.module import ReinforcementModule
from vilavt_toolkit.training.reinforcement.policy_math import repeat_per_token, weighted_sum
from vilavt_toolkit.training.reinforcement.reference import Reference
from vilavt_toolkit.training.reinforcement.rollout_buffer import RolloutBuffer


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("size", [1, 4])
def test_what_was_recorded_while_sampling_is_what_a_training_forward_computes(rl, rl_recipe, left, size):
    module = rl.module_of(rl_recipe, "rl.temperature=0.8")
    rows = rl.pending_of(module).rollouts
    assert any(len(row.trajectory.groups) > 1 for row in rows), "no rollout zoomed"
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        trajectories, views = [row.trajectory for row in part], [row.views for row in part]
        batch = collate(trajectories, views, module.model.language_model, left)
        with torch.no_grad():
            states = module.model.run_layers(batch)
            found, _ = logprobs_and_entropy(module.model.language_model, states, batch, 0.8)
        recorded = torch.tensor([value for row in part for value in row.sampled_logprobs])
        assert len(recorded) > 10 and (found - recorded).abs().max() < 1e-4


def test_dropout_is_off_in_rollouts_and_update(rl, rl_recipe):
    module = rl.stepped(rl.module_of(rl_recipe, "model.language_model.config.attention_dropout=0.5"), 2)
    assert not any(part.training for part in module.model.modules())
    assert max(logged.get("logprob_gap_max", 0) for logged in module.logged) < 1e-4


def test_the_first_inner_step_has_ratio_1_nothing_clipped_and_the_gradient_of_reinforce(rl, rl_recipe):
    module = rl.stepped(rl.module_of(rl_recipe), 1)
    (update,) = (logged for logged in module.logged if "clip_fraction" in logged)
    assert update["clip_fraction"] == 0 and update["logprob_gap_max"] < 1e-4
    fresh = rl.module_of(rl_recipe)
    pending = rl.pending_of(fresh)
    weights = fresh._parts.policy_loss.sequence_weights(pending.lengths)
    whole = next(pending.split_into_chunks(None))
    batch = pending.collate_chunk(whole, module.model.language_model)
    gain = repeat_per_token([row.advantage for row in pending.rollouts], pending.lengths)
    weighted_sum(-gain * plain_logprobs(fresh.model(batch), batch), weights, pending.lengths).backward()
    for name, weight in fresh.model.named_parameters():
        if weight.grad is not None:
            assert (module.grads[name] - weight.grad).abs().max() <= 1e-6 + 1e-4 * weight.grad.abs().max(), name


def test_the_second_inner_step_compares_with_the_weights_that_sampled(rl, rl_recipe):
    module = rl.stepped(rl.module_of(rl_recipe, "rl.optimizer.lr=0.1"), 2)
    updates = [logged for logged in module.logged if "clip_fraction" in logged]
    assert [update["clip_fraction"] > 0 for update in updates] == [False, True]
    assert ["logprob_gap" in update for update in updates] == [True, False]


@pytest.mark.parametrize("loss", ["{name: ppo_clip}", "{name: ppo_clip, normalise: constant, max_length: 64}", "dapo"])
@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_has_the_same_gradient_in_micro_batches(rl, rl_recipe, loss, micro):
    settings = [f"rl.policy_loss={loss}", "rl.inner_epochs=1", "rl.steps=1"]
    whole = rl.stepped(rl.module_of(rl_recipe, *settings), 1)
    split = rl.stepped(rl.module_of(rl_recipe, *settings, f"rl.micro_batch={micro}"), 1)
    assert split.grads.keys() == whole.grads.keys()
    for name, expected in whole.grads.items():
        assert (split.grads[name] - expected).abs().max() < 1e-4 * max(1e-2, expected.abs().max()), name


@pytest.mark.parametrize("settings", [("rl.policy_loss={name: ppo_clip}", "rl.kl=0.3"), ("rl.policy_loss=dapo",)])
@pytest.mark.parametrize(
    "rows",
    [
        ("rl.pack_tokens=1500",),
        ("rl.pack_tokens=100000", "rl.pack_patches=150"),
        ("rl.pack_tokens=1500", "rl.share_prompts=false"),
    ],
)
def test_rollouts_that_share_rows_give_the_loss_gradients_and_metrics_of_those_alone(rl, rl_recipe, settings, rows):
    settings = ("rl.inner_epochs=1", "rl.steps=1", *settings)
    alone, packed = rl.module_of(rl_recipe, *settings, "rl.micro_batch=1"), rl.module_of(rl_recipe, *settings, *rows)
    if "rl.kl=0.3" in settings:
        for module in (alone, packed):
            module.reference = Reference(rl.livened(copy.deepcopy(module.model)))
    shapes, stems, run_layers = [], set(), packed.model.run_layers

    def watched(batch):
        shapes.append((len(batch.ids), len(batch.documents)))
        stems.update(batch.stems)
        return run_layers(batch)

    packed.model.run_layers = watched
    rl.stepped(alone, 1)
    rl.stepped(packed, 1)
    assert all(count == 1 for count, _ in shapes) and max(documents for _, documents in shapes) > 2
    assert bool(stems) == packed.section.share_prompts, "prompts stand in a row once"
    (expected,), (found,) = ([each for each in module.logged if "loss" in each] for module in (alone, packed))
    assert found.keys() == expected.keys()
    for name in found.keys() - {"time/update"}:
        # The gap is that between two ways to compute the same numbers: all of it is rounding.
        tolerance = 1e-5 if name.startswith("logprob_gap") else 1e-6
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=tolerance), name
    assert packed.grads.keys() == alone.grads.keys()
    for name, gradient in alone.grads.items():
        assert (packed.grads[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_every_token_is_in_one_row_whose_limits_hold_and_old_logprobs_go_back_to_their_places(rl, rl_recipe):
    module = rl.module_of(rl_recipe, "rl.pack_tokens=900")
    pending, budget = rl.pending_of(module), module._budget
    chunks = list(pending.split_into_chunks(None, budget))
    assert any(len(chunk.rollouts) > 1 for chunk in chunks)
    assert sorted(number for chunk in chunks for number in chunk.rollouts) == list(range(len(pending.rollouts)))
    assert torch.cat([chunk.tokens for chunk in chunks]).sort().values.tolist() == list(range(sum(pending.lengths)))
    for chunk in chunks:
        batch = pending.collate_chunk(chunk, module.model.language_model)
        assert batch.ids.numel() <= 900 or len(chunk.rollouts) == 1, "a larger rollout has a row alone"
        lengths = [each.produced_tokens for each in pending.select_rollouts(chunk)]
        assert len(batch.targets) == sum(lengths) == len(chunk.tokens)
    apart = copy.deepcopy(pending)
    with torch.no_grad():
        for chunk in chunks:
            module._token_losses(pending, chunk, True, TokenAverages())
        for chunk in apart.split_into_chunks(1):
            module._token_losses(apart, chunk, True, TokenAverages())
    assert torch.allclose(pending.old_logprobs, apart.old_logprobs, atol=1e-5) and pending.old_logprobs.any()


class Texts:
    """A task without images in every second sample."""

    def __init__(self, task) -> None:
        self.task = task

    def sample(self, split, index):
        sample = self.task.sample(split, index)
        return sample if index % 2 else dataclasses.replace(sample, originals=())


def test_a_micro_batch_that_uses_nothing_that_learns_adds_loss_and_no_gradient(rl, rl_recipe):
    modules = []
    for micro in (None, 1):
        module = rl.module_of(rl_recipe, "rl.freeze=[encoder,language_model]", "rl.prompts_per_step=6")
        module.section = dataclasses.replace(module.section, micro_batch=micro)
        module.collector.task = Texts(module.collector.task)
        module.collector._loop = rl.Scripted(module.model, Decoding(40, 1.0), lambda number: ())
        modules.append(rl.stepped(module, 1))
    whole, split = modules
    assert whole.grads and split.grads.keys() == whole.grads.keys()
    for name, expected in whole.grads.items():
        assert (split.grads[name] - expected).abs().max() < 1e-4 * max(1e-2, expected.abs().max()), name


def test_no_gradient_enters_where_the_model_wrote_nothing(rl, rl_recipe, monkeypatch):
    module = rl.module_of(rl_recipe)
    seen, run_layers = [], module.model.run_layers

    def watched(batch):
        seen.append(run_layers(batch))
        seen[0].retain_grad()
        return seen[0]

    monkeypatch.setattr(module.model, "run_layers", watched)
    pending = rl.pending_of(module)
    (chunk,) = pending.split_into_chunks(None)
    loss_of(module, pending).backward()
    (states,) = seen
    batch = pending.collate_chunk(chunk, module.model.language_model)
    written = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    written[batch.targets - 1] = True
    gradient = states.grad.flatten(0, 1)
    assert (gradient[~written] == 0).all() and (gradient[written].abs().amax(1) > 0).any()


def loss_of(module: ReinforcementModule, pending: RolloutBuffer) -> torch.Tensor:
    """The loss of one inner step, with `old` as it was first found."""
    (chunk,) = pending.split_into_chunks(None)
    tokens = module._token_losses(pending, chunk, is_first=not pending.old_logprobs.any(), averages=TokenAverages())
    return weighted_sum(tokens, module._parts.policy_loss.sequence_weights(pending.lengths), pending.lengths)


def test_the_gradient_reaches_the_modulators_through_encoding_again_and_equals_finite_differences(rl, rl_recipe):
    model = rl.livened(build(rl_recipe)).double()
    module = rl.module_of(rl_recipe, model=model)
    pending = rl.pending_of(module)
    pending.old_logprobs = pending.old_logprobs.double()
    weights = list(model.vision.modulators.parameters())
    loss_of(module, pending).backward()
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        found = float((weight.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-4 * direction)
                values.append(float(loss_of(module, pending)))
                weight.sub_(sign * 1e-4 * direction)
        assert found == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-2, abs=2e-4)
    assert max(float(weight.grad.abs().max()) for weight in weights) > 1e-4


def test_frozen_modulators_stay_as_they_are_to_the_bit_while_what_is_around_them_learns(rl, rl_recipe):
    moved = {}
    for frozen in ("[]", "[modulator]"):
        module = rl.module_of(rl_recipe, f"rl.freeze={frozen}")
        before = copy.deepcopy(module.model.state_dict())
        after = rl.stepped(module, 2).model.state_dict()
        moved[frozen] = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    modulators = {name for name in moved["[]"] if name.startswith("vision.modulators.")}
    assert modulators and moved["[modulator]"] == moved["[]"] - modulators


def test_features_kept_from_the_rollout_would_teach_the_modulators_nothing(rl, rl_recipe, monkeypatch):
    encode = VisualChatModel.encode
    monkeypatch.setattr(VisualChatModel, "encode", lambda self, *given: encode(self, *given).detach())
    module = rl.module_of(rl_recipe)
    loss_of(module, rl.pending_of(module)).backward()
    grads = [weight.grad for weight in module.model.vision.modulators.parameters()]
    assert all(grad is None or not grad.any() for grad in grads)


def test_after_an_update_a_rollout_is_that_of_a_fresh_model_with_the_same_weights(rl, rl_recipe):
    module = rl.stepped(rl.module_of(rl_recipe), 2)
    fresh = build(rl_recipe)
    fresh.load_state_dict(module.model.state_dict())
    found, expected = module.collector.collect(2), rl.module_of(rl_recipe, model=fresh).collector.collect(2)
    for group, same in zip(found, expected, strict=True):
        assert [r.trajectory.ids for r in group] == [r.trajectory.ids for r in same]
        assert [r.trajectory.logprobs for r in group] == [r.trajectory.logprobs for r in same]


def test_logprobs_in_chunks_are_those_of_one_piece_in_value_and_gradient(rl, tiny_model, rl_recipe):
    module = rl.module_of(rl_recipe, model=copy.deepcopy(tiny_model))
    pending = rl.pending_of(module)
    batch = pending.collate_chunk(next(pending.split_into_chunks(None)), module.model.language_model)
    with torch.no_grad():
        states = module.model.run_layers(batch)
    found = []
    for chunk in (10**6, 7):
        leaf = states.clone().requires_grad_()
        logprobs, entropy = logprobs_and_entropy(module.model.language_model, leaf, batch, 0.7, chunk)
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        found.append((logprobs.detach(), entropy, leaf.grad))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert (found[0][1] >= 0).all() and (found[0][1] <= torch.tensor(400.0).log()).all()


def test_a_reference_of_the_start_costs_nothing_at_first_and_then_holds_the_weights_back(rl, rl_recipe):
    start = rl.livened(build(rl_recipe))
    settings = ["rl.optimizer.lr=0.01", "rl.steps=2"]
    drifted = {}
    for kl in (0.0, 10.0):
        held = copy.deepcopy(start)
        reference = Reference(held) if kl else None
        module = rl.module_of(rl_recipe, *settings, f"rl.kl={kl}", model=copy.deepcopy(start), reference=reference)
        rl.stepped(module, 4)
        updates = [logged for logged in module.logged if "clip_fraction" in logged]
        if kl:
            assert abs(updates[0]["kl"]) < 1e-6 and updates[1]["kl"] > 1e-4
            assert all(torch.equal(a, b) for a, b in zip(held.parameters(), start.parameters(), strict=True))
        rows = rl.pending_of(rl.module_of(rl_recipe, model=copy.deepcopy(start))).rollouts
        batch = collate([row.trajectory for row in rows], [row.views for row in rows], start.language_model)
        with torch.no_grad():
            before, after = (plain_logprobs(model(batch), batch) for model in (start, module.model))
        drifted[kl] = float((before - after).abs().mean())
    assert drifted[10.0] < drifted[0.0]


class Stripes:
    """Stripes one pixel wide, down or across: grey in the first view, and seen in a zoom at full resolution."""

    def length(self, split):
        return 64

    def sample(self, split, index):
        lines = np.tile(np.array([0, 255], np.uint8), 32)
        image = np.broadcast_to(lines[:, None] if index % 2 else lines, (64, 64))
        return Sample(str(index), "?", str(index % 2), (np.repeat(image[..., None], 3, 2),))


class FirstToken(Reward):
    """Whether the parity of the last turn's first token says which way the stripes run."""

    @classmethod
    def tiny(cls):
        raise NotImplementedError

    def score(self, sample, trajectory):
        own = [place for place, mine in enumerate(trajectory.produced) if mine]
        first = max(place for place in own if not trajectory.produced[place - 1])
        return float(trajectory.ids[first] % 2 == int(sample.answer))


def rewards_of(rl, recipe: Path, steps: int, zooms: bool) -> list[float]:
    """The rewards of every step on `Stripes`, in rollouts that all begin with a zoom, or have no tool."""
    module = rl.module_of(
        recipe, f"rl.steps={steps}", "rl.inner_epochs=1", "rl.prompts_per_step=4", "rl.group_size=8",
        "rl.optimizer.lr=0.003", "rl.optimizer.betas=[0.9,0.98]", "rl.schedule=constant",
        "model.stopping=[{name: model_decides}, {name: max_turns, turns: 1}]",
    )  # fmt: skip
    collector, model = module.collector, module.model
    collector.task, collector._order.size, collector.rewards._named = Stripes(), 64, [("right", FirstToken())]
    call = rl.zoom(model, 0)
    collector._loop = Loop(model, Decoding(4, 1.0))
    if zooms:
        collector._loop = rl.Scripted(model, Decoding(len(call), 1.0), lambda number: list(call))
    return [logged["reward"] for logged in rl.stepped(module, steps).logged if "reward" in logged]


def test_what_only_a_zoom_shows_is_learnt_with_the_tool_and_not_without(rl, rl_recipe):
    with_tool, without = rewards_of(rl, rl_recipe, 32, zooms=True), rewards_of(rl, rl_recipe, 16, zooms=False)
    chance = 1.0  # half of them right, times the weight of 2
    assert sum(with_tool[-8:]) / 8 > 1.5 * chance
    assert abs(sum(without) / 16 - chance) < 0.2 and abs(sum(with_tool[:4]) / 4 - chance) < 0.4
