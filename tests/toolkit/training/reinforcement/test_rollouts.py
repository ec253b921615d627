"""Rollouts: each depends on its place in the run alone, what teaches nothing costs nothing, faults are named."""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

from vilavt_components.language_models import qwen2_5_vl
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import InputError, TrainingError
from vilavt_toolkit.generation.loop import Decoding, Loop
from vilavt_toolkit.generation.reader import Reader
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.reinforcement.rollout_buffer import RolloutBuffer
from vilavt_toolkit.training.reinforcement.rollouts import RolloutCollector, rollout_seed
from vilavt_toolkit.training.reinforcement.scoring import RewardError
from vilavt_toolkit.training.stage import StoppedBetweenSteps


def said(groups) -> list[list[list[int]]]:
    return [[rollout.trajectory.ids for rollout in group] for group in groups]


def prompter_of(recipe, model, *overrides) -> RolloutCollector:
    sections = load_recipe(recipe, overrides).recipe
    return RolloutCollector(model, sections.task.build(), sections.rl, sections.seed)


def test_a_rollout_depends_on_seed_step_prompt_and_sample_and_on_no_neighbour(rl_recipe, tiny_model):
    collector = prompter_of(rl_recipe, tiny_model)
    first = said(collector.collect(1))
    assert said(collector.collect(1)) == first
    assert said(prompter_of(rl_recipe, tiny_model, "rl.rollout_batch=3").collect(1)) == first
    assert (
        said(collector.collect(2)) != first and said(prompter_of(rl_recipe, tiny_model, "seed=4").collect(1)) != first
    )
    assert all(len({tuple(ids) for ids in group}) == 4 for group in first), "rollouts of a prompt repeat each other"


@pytest.mark.parametrize("ends", ["well", "by an error"])
def test_rollouts_of_a_mixed_run_are_led_by_weights_in_bfloat16_and_leave_the_policys_own(
    rl, rl_recipe, mrope_model, monkeypatch, ends
):
    monkeypatch.setattr(qwen2_5_vl, "_CAUSAL_KERNELS", ("cpu",))
    collector, seen = prompter_of(rl_recipe, mrope_model), []
    monkeypatch.setattr(
        collector, "_loop", rl.Scripted(mrope_model, Decoding(30, 1.0), lambda n: rl.zoom(mrope_model, n))
    )

    def watch(module, given, logits):
        seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
        if ends != "well":
            raise InputError("out of luck")

    held = dict(mrope_model.state_dict(keep_vars=True))
    before = {name: value.clone() for name, value in held.items()}
    hook = mrope_model.language_model.register_forward_hook(watch)
    try:
        with torch.autocast("cpu", torch.bfloat16), nullcontext() if ends == "well" else pytest.raises(InputError):
            rollouts = [rollout for group in collector.collect(0) for rollout in group]
            assert any(len(rollout.trajectory.regions) > 1 for rollout in rollouts), "no second turn was read"
    finally:
        hook.remove()
    assert set(seen) == {(torch.bfloat16, False)}
    after = mrope_model.state_dict(keep_vars=True)
    assert all(after[name] is held[name] and torch.equal(after[name], before[name]) for name in before)


def test_seeds_of_rollouts_do_not_collide():
    places = [(0, step, attempt, prompt, n) for step in range(9) for attempt in range(3) for prompt in range(9)
              for n in range(9)]  # fmt: skip
    assert len({rollout_seed(*place) for place in places}) == len(places)


def test_rollouts_of_a_prompt_share_its_pixels_and_nothing_that_changes(rl_recipe, tiny_model):
    (first, second, *_), *_ = prompter_of(rl_recipe, tiny_model).collect(0)
    assert first.session.views[0] is second.session.views[0]
    assert first.trajectory.ids is not second.trajectory.ids


@pytest.mark.parametrize("slots", [128, 64, 32, 16, 8])
def test_a_prompt_is_read_and_encoded_once_however_many_of_its_rollouts_run_at_a_time(
    rl_recipe, tiny_model, monkeypatch, slots
):
    settings = ["rl.prompts_per_step=16", "rl.group_size=8", "rl.max_new_tokens=1", f"rl.rollout_batch={slots}"]
    read, encoded = [], []
    prefill, encode = Reader._prefill_chunk, VisualChatModel.encode

    def counting_prefill(self, requests, features):
        read.extend(request.number // 8 for request in requests if not self.cache.lengths[request.row])
        return prefill(self, requests, features)

    def counting_encode(self, views, groups, inquiries):
        encoded.extend(views)
        return encode(self, views, groups, inquiries)

    monkeypatch.setattr(Reader, "_prefill_chunk", counting_prefill)
    monkeypatch.setattr(VisualChatModel, "encode", counting_encode)
    groups = prompter_of(rl_recipe, tiny_model, *settings).collect(0)
    assert sorted(read) == list(range(16)) and len(encoded) == 16
    for first, *others in groups:
        assert first.session.spent.patches and first.session.spent.read
        assert all(other.session.spent.patches == first.session.spent.patches for other in others)


def test_no_rollout_says_the_placeholder(rl_recipe, tiny_model):
    for group in prompter_of(rl_recipe, tiny_model).collect(0):
        for rollout in group:
            own = zip(rollout.trajectory.ids, rollout.trajectory.produced, strict=True)
            assert tiny_model.language_model.placeholder not in [token for token, mine in own if mine]


class Given:
    """A reward that returns what the test says, by the number of its call."""

    def __init__(self, values):
        self.values, self.calls = values, 0

    def score(self, sample, trajectory):
        self.calls += 1
        return self.values(self.calls - 1)


def rewarded(module, values):
    module.collector.rewards._named = [("given", Given(values))]
    return module


def test_a_group_whose_rewards_are_all_equal_costs_no_forward(rl, rl_recipe, monkeypatch):
    module = rewarded(rl.module_of(rl_recipe), lambda call: float(call >= 4 and call % 2))
    run_layers, rows = VisualChatModel.run_layers, []
    monkeypatch.setattr(
        VisualChatModel, "run_layers", lambda self, batch: rows.append(len(batch.ids)) or run_layers(self, batch)
    )
    rl.stepped(module, 1)
    assert rows == [4]
    assert module.logged[0]["zero_variance"] == 0.5 and module.logged[1]["learnt_from"] == 4


def test_where_nothing_is_learnt_other_prompts_are_asked_and_then_the_run_stops(rl, rl_recipe):
    module = rewarded(rl.module_of(rl_recipe, "rl.max_resamples=2"), lambda call: float(call >= 20 and call % 2))
    rl.stepped(module, 1)
    assert module.collector.rewards._named[0][1].calls == 24 and module.logged[0]["zero_variance"] == pytest.approx(
        5 / 6
    )
    module = rewarded(rl.module_of(rl_recipe, "rl.max_resamples=2"), lambda call: 0.25)
    with pytest.raises(
        TrainingError, match=r"step 0: nothing to learn from in 24 rollouts: in 6 of 6 .*mean reward 0\.5"
    ):
        rl.stepped(module, 1)


def test_flat_groups_are_replaced_until_the_step_has_its_prompts(rl, rl_recipe):
    """Groups 0, 2 and 3 are flat: the step asks two prompts, then one, then one, and learns from groups 1 and 4."""
    settings = ("rl.dynamic_sampling=true", "rl.max_resamples=5", "rl.inner_epochs=1")
    found = []
    for _ in range(2):
        module = rewarded(rl.module_of(rl_recipe, *settings), lambda call: float(call // 4 in (1, 4) and call % 2))
        buffer = module.fill_buffer(0)
        assert module.collector.rewards._named[0][1].calls == 20
        (logged,) = module.logged
        assert (logged["resampled"], logged["zero_variance"], logged["rollouts"]) == (3, pytest.approx(3 / 5), 20)
        assert len(buffer.rollouts) == 8 and {round(abs(row.advantage), 3) for row in buffer.rollouts} == {0.866}
        found.append([row.trajectory.ids for row in buffer.rollouts])
    assert found[0] == found[1], "the same seed asks the same prompts"


def test_at_the_bound_a_step_learns_from_the_groups_that_it_has_or_the_run_stops(rl, rl_recipe):
    settings = ("rl.dynamic_sampling=true", "rl.max_resamples=2")
    module = rewarded(rl.module_of(rl_recipe, *settings), lambda call: float(call < 4 and call % 2))
    assert len(module.fill_buffer(0).rollouts) == 4 and module.logged[0]["resampled"] == 2
    module = rewarded(rl.module_of(rl_recipe, *settings), lambda call: 0.25)
    with pytest.raises(TrainingError, match=r"nothing to learn from in 24 rollouts: in 6 of 6 prompt groups"):
        module.fill_buffer(0)


def test_a_group_whose_rollouts_are_all_masked_is_replaced_too(rl, rl_recipe):
    settings = ("rl.dynamic_sampling=true", "rl.truncated_rollouts=mask", "rl.max_resamples=1")
    module = rl.module_of(rl_recipe, *settings)
    module.collector._loop = Loop(module.model, Decoding(1, 1.0))
    with pytest.raises(TrainingError, match=r"and 16 rollouts were cut short, which rl\.truncated_rollouts leaves"):
        module.fill_buffer(0)


def test_rewards_of_equal_sum_are_flat_for_the_sum_alone(rl, rl_recipe):
    for advantage, replaced in (("grpo", 2), ("gdpo", 0)):
        settings = ("rl.dynamic_sampling=true", "rl.max_resamples=1", f"rl.advantage={advantage}")
        module = rl.module_of(rl_recipe, *settings, "rl.rewards=[evenness, evenness, evenness]")
        # A column for each rollout of a group, whose sum is always 1.
        scores = ([1, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0.5, 1, 0.5])
        given = [Given(lambda call, row=row: row[call % 4]) for row in scores]
        module.collector.rewards._named = [(str(number), each) for number, each in enumerate(given)]
        if replaced:
            with pytest.raises(TrainingError, match="in 4 of 4 prompt groups all rewards are equal"):
                module.fill_buffer(0)
        else:
            module.fill_buffer(0)
        assert module.logged[0]["resampled"] == replaced


def test_rollouts_that_were_cut_short_score_or_are_left_out(rl, rl_recipe):
    scored = rl.pending_of(rl.module_of(rl_recipe))
    assert any(row.trajectory.cut_short for row in scored.rollouts)
    module = rl.module_of(rl_recipe, "rl.truncated_rollouts=mask", "rl.max_resamples=1")
    module.collector._loop = Loop(module.model, Decoding(1, 1.0))
    with pytest.raises(TrainingError, match=r"16 rollouts were cut short, which rl\.truncated_rollouts leaves out"):
        rl.stepped(module, 1)


def test_a_rollout_that_says_nothing_is_rewarded_and_left_out_of_the_update(rl, rl_recipe):
    module = rl.module_of(rl_recipe)
    groups = module.collector.collect(0)
    for rollout in groups[0]:
        rollout.trajectory.produced[:] = [False] * len(rollout.trajectory.produced)
    assert {row.sample for row in module._select_learned(groups)} == {groups[1][0].sample.id}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda call: float("nan"), "returned nan"),
        (lambda call: 1 / 0, "raised ZeroDivisionError"),
        (lambda call: time.sleep(60), "has not returned for 0.2 seconds"),
    ],
    ids=["nan", "raises", "hangs"],
)
def test_a_reward_that_fails_is_named_with_its_sample(rl, rl_recipe, values, words):
    module = rewarded(rl.module_of(rl_recipe, "rl.reward_seconds=0.2"), values)
    with pytest.raises(RewardError, match=rf"reward 'given', sample \S+: it {words}"):
        rl.stepped(module, 1)
    assert module.is_between_steps, "nothing is lost by it"


class NotANumber:
    """A policy loss with a token that is no number, in the row that has most tokens."""

    def __init__(self, inner):
        self.inner, self.sequence_weights = inner, inner.sequence_weights

    def sequence_losses(self, logp, old, advantages, lengths):
        loss, clipped = self.inner.sequence_losses(logp, old, advantages, lengths)
        return torch.cat([loss[:-1], loss[-1:] * float("nan")]), clipped


def test_an_update_that_is_no_number_is_left_out_counted_and_its_sample_named(rl, rl_recipe, caplog):
    module = rl.module_of(rl_recipe, "rl.max_skipped=1")
    object.__setattr__(module._parts, "policy_loss", NotANumber(module._parts.policy_loss))
    before = {name: weight.clone() for name, weight in module.model.named_parameters()}
    last = RolloutBuffer.from_rollouts(module._select_learned(module.collector.collect(0)), "cpu").rollouts[-1].sample
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match=r"2 steps .* raise rl\.max_skipped"):
        rl.stepped(module, 4)
    assert f"step 0 is left out: its loss or gradient is NaN or infinite, with samples {last}." in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in module.model.named_parameters())


def test_a_request_to_stop_is_heard_between_batches_of_rollouts(rl_recipe, tiny_model):
    collector = prompter_of(rl_recipe, tiny_model, "rl.rollout_batch=2")
    interruption, asked = Interruption(), iter([False, False, True])

    def check_stop():
        interruption.is_requested = next(asked)
        interruption.check_between_steps()

    collector.check_stop = check_stop
    with pytest.raises(StoppedBetweenSteps):
        collector.collect(0)


def test_pending_rollouts_come_back_to_the_bit(rl, rl_recipe, tmp_path):
    pending = rl.pending_of(rl.module_of(rl_recipe))
    pending.old_logprobs.normal_()
    state = pending.to_state()
    save_file(state.tensors, tmp_path / "state.safetensors")
    data = json.loads(json.dumps(state.data))
    back = RolloutBuffer.from_state(TrainingState(load_file(tmp_path / "state.safetensors"), data), "cpu")
    assert torch.equal(back.old_logprobs, pending.old_logprobs) and len(back.rollouts) == len(pending.rollouts)
    for row, same in zip(pending.rollouts, back.rollouts, strict=True):
        assert (row.sample, row.advantage, row.trajectory) == (same.sample, same.advantage, same.trajectory)
        assert all(torch.equal(a.data, b.data) and a.size == b.size for a, b in zip(row.views, same.views, strict=True))


def test_a_rollout_that_goes_wrong_is_named_with_its_sample(rl_recipe, tiny_model, monkeypatch):
    collector = prompter_of(rl_recipe, tiny_model)
    monkeypatch.setattr(tiny_model, "encode", lambda *given: torch.full((0,), 1.0).sum().item() / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        collector.collect(0)
    assert any("while sample " in note for note in raised.value.__notes__)
