"""Stopping policies that learn: from which turns, beside what, and what of them a run keeps."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vilavt_toolkit.checkpoints import exporting
from vilavt_toolkit.checkpoints.loading import build, load
from vilavt_toolkit.cli import commands
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Conversation, LoopState, Message, Sample, Trajectory
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import RecipeErrors, RunError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.generation.hidden_states import collect_hidden_states
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.stage import StageModule
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.run import run_supervised

HALTING = "model.stopping=[model_decides,{name: any_of, policies: [{name: learned_halt, hidden_dim: 8}, max_turns]}]"
HEAD = "stopping.1.policies.0.head."
"""What the names of its weights begin with."""
OTHERS = "train.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load(run, device="cpu").named_parameters())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.fixture(scope="module")
def halting_run(_tiny_folder) -> Path:
    """The tiny recipe's run with a head; without clipping, which would tie all gradients together."""
    overrides = [f"run={_tiny_folder / 'halting'}", "train.gradient_clip=null", HALTING]
    return run_supervised(load_recipe(_tiny_folder / "tiny.yaml", overrides))


# --- What is learned from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
def test_a_head_learns_where_each_turn_of_a_trace_begins(tiny_model, tiny_task, left):
    sessions = [build_trace_session(tiny_model, tiny_task.sample("train", index)) for index in range(6)]
    language = tiny_model.language_model
    batch = collate([s.trajectory for s in sessions], [s.views for s in sessions], language, left)
    written = [turn for session in sessions for turn in session.trajectory.turns]
    first = [language.tokenizer.encode(tiny_model.dialogue.write(turn))[0] for turn in written]
    reply = language.tokenizer.encode(language.turn_template.reply)[-1]
    assert batch.ids.flatten()[batch.starts + 1].tolist() == first
    assert set(batch.ids.flatten()[batch.starts].tolist()) == {reply}, "as the loop is when it looks"
    assert batch.answered.tolist() == [float(turn.answer is not None) for turn in written]
    assert set(batch.answered.tolist()) == {0.0, 1.0}


def test_turns_that_are_only_read_or_neither_answer_nor_call_teach_no_head(tiny_model):
    said = ["<think>a</think><answer>7</answer>", "hello", "<think>b</think><answer>8</answer>"]
    messages = [Message("user", ("what?",))]
    for number, text in enumerate(said):
        messages += [Message("assistant", (text,), learned=number > 0), Message("user", ("and now?",))]
    session = build_trace_session(tiny_model, Sample("s", "", "", (), conversation=Conversation(tuple(messages))))
    batch = collate([session.trajectory], [session.views], tiny_model.language_model)
    assert batch.starts.tolist() == [session.trajectory.starts[2] - 1]


def test_records_from_before_turns_starts_were_kept_teach_no_head(tiny_model, tiny_task):
    session = build_trace_session(tiny_model, tiny_task.sample("train", 0))
    old = session.trajectory.to_json()
    del old["starts"]
    batch = collate([Trajectory.from_json(old)], [session.views], tiny_model.language_model)
    assert batch.starts.shape == batch.answered.shape == (0,)


def test_hidden_states_are_those_that_logits_are_made_of(tiny_model, tiny_task):
    session = build_trace_session(tiny_model, tiny_task.sample("train", 0))
    batch = collate([session.trajectory], [session.views], tiny_model.language_model)
    with torch.no_grad(), collect_hidden_states(tiny_model.language_model) as seen:
        logits = tiny_model(batch)
    said = logits.isfinite()
    torch.testing.assert_close(tiny_model.language_model.head(seen[0])[said], logits[said])
    with torch.no_grad():
        tiny_model(batch)
    assert len(seen) == 1, "nothing is kept once they are no longer asked for"


# --- Training --------------------------------------------------------------------------------------------------------


def gradients(recipe: Path, run: Path, micro_batch: int, monkeypatch) -> dict[str, torch.Tensor]:
    """Of one step on eight samples."""
    seen: dict[str, torch.Tensor] = {}

    def watched(self, optimizer):
        named = self.model.named_parameters()
        seen.update({name: weight.grad.clone() for name, weight in named if weight.grad is not None})
        StageModule.on_before_optimizer_step(self, optimizer)

    monkeypatch.setattr(SupervisedModule, "on_before_optimizer_step", watched)
    run_supervised(load_recipe(recipe, [f"run={run}", HALTING, "train.steps=1", f"train.micro_batch={micro_batch}"]))
    return seen


def test_no_split_of_a_step_changes_a_gradient(tiny_recipe, tmp_path, monkeypatch):
    whole, split = (gradients(tiny_recipe, tmp_path / str(size), size, monkeypatch) for size in (8, 2))
    assert whole.keys() == split.keys() and any(name.startswith(HEAD) for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_head_learns_and_changes_nothing_of_what_the_rest_learns(tiny_recipe, halting_run, tmp_path):
    overrides = [f"run={tmp_path / 'plain'}", "train.gradient_clip=null"]
    plain, halting = weights(run_supervised(load_recipe(tiny_recipe, overrides))), weights(halting_run)
    begun = dict(build(tiny_recipe, [HALTING]).named_parameters())
    assert changed(plain, {name: weight for name, weight in halting.items() if not name.startswith(HEAD)}) == set()
    head = {name: weight for name, weight in halting.items() if name.startswith(HEAD)}
    assert changed(begun, head) == set(head) != set()


def test_a_head_alone_can_be_trained_on_a_run_that_had_none(tiny_recipe, tiny_run, tmp_path, caplog):
    overrides = [f"run={tmp_path / 'head'}", f"train.init_from={tiny_run}", HALTING, OTHERS]
    with caplog.at_level(logging.WARNING):
        trained = weights(run_supervised(load_recipe(tiny_recipe, overrides)))
    (told,) = [record.getMessage() for record in caplog.records if "stopping" in record.getMessage()]
    assert str(tiny_run) in told and f"New are {HEAD}" in told
    before = weights(tiny_run)
    assert changed(before, {name: weight for name, weight in trained.items() if name in before}) == set()
    assert all(name.startswith(HEAD) for name in trained.keys() - before.keys())


def test_a_run_can_go_on_without_the_head_that_another_had_and_with_it_frozen(tiny_recipe, halting_run, tmp_path):
    begun = [f"train.init_from={halting_run}", "train.steps=1"]
    without = weights(run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'without'}", *begun])))
    assert not any(name.startswith("stopping") for name in without)
    frozen = weights(
        run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'f'}", *begun, HALTING, "train.freeze=[stopping]"]))
    )
    moved = changed(weights(halting_run), frozen)
    assert moved and not any(name.startswith(HEAD) for name in moved)


def test_a_loaded_head_decides_as_it_did(halting_run):
    first, second = (load(halting_run, device="cpu").stopping[1].policies[0] for _ in range(2))
    states = [LoopState((), 0, before_turn=True, hidden=hidden) for hidden in torch.randn(5, 32)]
    second.config = first.config
    assert [second.decide(state) for state in states] == [first.decide(state) for state in states]


def test_a_checkpoint_that_lost_its_own_head_is_damaged(halting_run, tmp_path):
    run = Path(shutil.copytree(halting_run, tmp_path / "run"))
    file = run / "checkpoints" / "step-00000004" / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if not name.startswith(HEAD)}, file)
    with pytest.raises(RunError, match="it lacks"):
        load(run)


def test_reinforcement_leaves_what_a_stopping_policy_learned_as_it_is(rl_recipe, tiny_run, tmp_path):
    settings = [f"run={tmp_path / 'first'}", f"train.init_from={tiny_run}", "rl.steps=1", "rl.inner_epochs=1", HALTING]
    first = run_supervised(load_recipe(rl_recipe, settings))
    second = run_reinforcement(load_recipe(rl_recipe, settings))
    moved = changed(weights(first), weights(second))
    assert moved and not any(name.startswith("stopping.") for name in moved)
    everything = "rl.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]"
    with pytest.raises(RecipeErrors, match=r"rl\.freeze leaves nothing to train"):
        commands.check(str(rl_recipe), [*settings, everything])


def test_a_format_of_others_has_no_place_for_a_head_and_that_is_said(halting_run, tmp_path, caplog):
    model = foreign.build_format("vilavt").build_example()
    exporting.save_foreign(model, tmp_path / "without")
    assert not caplog.records
    model.stopping = load(halting_run, device="cpu").stopping
    exporting.save_foreign(model, tmp_path / "with")
    assert "no place for the weights of stopping policies" in caplog.text
    assert load(tmp_path / "with").stopping[0].needs == frozenset()
