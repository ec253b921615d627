"""Reinforcement runs: folders, what is refused, exact resuming inside a rollout buffer, what a full disk leaves."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vilavt_toolkit.checkpoints import native
from vilavt_toolkit.checkpoints.loading import load
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import InputError, RecipeErrors, RunError, UsageError
from vilavt_toolkit.training.reinforcement import drawing as rl_drawing
from vilavt_toolkit.training.reinforcement.rollouts import RolloutCollector
from vilavt_toolkit.training.reinforcement.run import run_reinforcement


@pytest.fixture
def start(tiny_run, tmp_path) -> Path:
    """A copy of the first stage's run, where the recipe expects it."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def reinforced(recipe: Path, start: Path, *overrides: str, resume: bool = False, allow_changes: bool = False) -> Path:
    return run_reinforcement(load_recipe(recipe, [f"run={start}", *overrides]), resume, allow_changes)


def tensors(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def different(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def test_the_second_stage_goes_on_from_the_first_in_a_folder_of_its_own(rl_recipe, start, capsys):
    assert cli.run(["rl", str(rl_recipe), f"run={start}", "rl.save_rollouts_every=2"]) == 0
    run = start.with_name("run-rl")
    assert str(run) in capsys.readouterr().out.replace("\n", "")
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    before, after = load(start).state_dict(), load(run).state_dict()
    changed = different(after, before)
    for part in ("vision.backbone.", "projector.", "language_model."):
        assert any(name.startswith(part) for name in changed), part
    drawn = sorted(path.name for path in (run / "rollouts").iterdir())
    assert drawn == ["step-00000000", "step-00000002"]
    told = json.loads((run / "rollouts" / drawn[0] / "rollouts.json").read_text())
    assert len(told) == 8 and all(0 <= row["earned"]["evenness"] <= 1 for row in told)
    assert len(list((run / "rollouts" / drawn[0]).glob("*.png"))) == 4
    assert cli.run(["eval", str(run), "eval.items=2", "eval.arms=[modulated]"]) == 0


def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does_in_a_buffer_too(rl_recipe, start):
    """Three inner epochs, so that each of these checkpoints holds rollouts that are still learnt from."""
    settings = ["rl.inner_epochs=3", "rl.steps=2", "rl.checkpoint_every=1", "rl.kl=0.1", "rl.micro_batch=3"]
    settings.append("rl.keep_checkpoints=9")
    whole = reinforced(rl_recipe, start, *settings)
    for step in (2, 4, 5):
        broken = Path(shutil.copytree(whole, start.with_name(f"broken-{step}"), symlinks=True))
        for later in range(step + 1, 7):
            shutil.rmtree(broken / "checkpoints" / f"step-{later:08d}")
        held = load_training_state(broken / "checkpoints" / f"step-{step:08d}")
        assert "pending" in held.data and any(name.startswith("pending.view.") for name in held.tensors)
        torch.randn(7)
        # In the background a checkpoint has the rollouts of its own step too.
        background = f"rl.save_in_background={str(step == 2).lower()}"
        reinforced(rl_recipe, start, *settings, f"rl.run={broken}", background, resume=True)
        for name in ("model", "resume"):
            for later in range(step + 1, 7):
                assert different(tensors(broken, later, name), tensors(whole, later, name)) == [], (step, later, name)


def test_a_run_that_samples_other_prompts_for_flat_groups_resumes_bit_for_bit(rl_recipe, start):
    plugin = rl_recipe.parent / "evenness.py"
    # Three quarters of the samples reward all rollouts alike.
    plugin.write_text(
        plugin.read_text().replace("    own = ", "    if sum(map(ord, sample.id)) % 4: return 0.5\n    own = ")
    )
    settings = ["rl.dynamic_sampling=true", "rl.max_resamples=20", "rl.steps=3", "rl.keep_checkpoints=9"]
    settings += ["rl.inner_epochs=1", "rl.checkpoint_every=1"]
    whole = reinforced(rl_recipe, start, *settings)
    broken = Path(shutil.copytree(whole, start.with_name("broken"), symlinks=True))
    for step in (2, 3):
        shutil.rmtree(broken / "checkpoints" / f"step-{step:08d}")
    reinforced(rl_recipe, start, *settings, f"rl.run={broken}", resume=True)
    for name in ("model", "resume"):
        assert different(tensors(broken, 3, name), tensors(whole, 3, name)) == []


def test_metrics_of_rollouts_are_logged_in_later_inner_epochs_too(rl_recipe, start):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = reinforced(rl_recipe, start, "rl.inner_epochs=2", "rl.steps=2", "rl.log_every=2")
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    for name in ("reward", "loss", "learning_rate", "time/rollout"):
        assert [event.step for event in events.Scalars(name)] == [1, 3], name


def test_a_resumed_run_is_checked_against_its_own_section(rl_recipe, start):
    run = reinforced(rl_recipe, start, "rl.steps=1")
    settings = ["rl.steps=2", "rl.freeze=[encoder]", "train.batch_size=4"]
    with pytest.raises(RunError, match=r'other settings: rl\.freeze=\["encoder"\] \(was \[\]\)\. Resume with the same'):
        reinforced(rl_recipe, start, *settings, resume=True)
    with pytest.raises(RunError, match=r"with the same rl\.freeze and rl\.optimizer\."):
        reinforced(rl_recipe, start, *settings, resume=True, allow_changes=True)
    assert find_checkpoint(run).name == "step-00000002"


def test_a_run_that_is_held_to_its_start_keeps_it(rl_recipe, start):
    run = reinforced(rl_recipe, start, "rl.kl=0.1", "rl.steps=1")
    assert different(load(run / "reference").state_dict(), load(start).state_dict()) == []
    shutil.rmtree(run / "reference")
    with pytest.raises(RunError, match=r"Resume with rl\.kl=0"):
        reinforced(rl_recipe, start, "rl.kl=0.1", "rl.steps=2", resume=True)
    reinforced(rl_recipe, start, "rl.steps=2", resume=True, allow_changes=True)


def test_a_run_of_adapters_alone_keeps_no_start_and_resumes_bit_for_bit(rl_recipe, start):
    frozen = "rl.freeze=[encoder,modulator,inquiry_encoder,projector]"
    settings = ["rl.lora={rank: 2}", frozen, "rl.kl=0.1", "rl.kl_in=reward", "rl.checkpoint_every=2"]
    settings += ["rl.keep_checkpoints=9", "rl.optimizer.lr=1e-2"]
    whole = reinforced(rl_recipe, start, *settings, "rl.steps=2")
    assert not (whole / "reference").exists()
    broken = Path(shutil.copytree(whole, start.with_name("broken"), symlinks=True))
    shutil.rmtree(broken / "checkpoints" / "step-00000004")
    reinforced(rl_recipe, start, *settings, "rl.steps=2", f"rl.run={broken}", resume=True)
    assert different(tensors(broken, 4), tensors(whole, 4)) == []
    assert different(tensors(whole, 4), tensors(whole, 2))
    with pytest.raises(RunError, match=r"with rl\.kl_reference=auto if adapters alone"):
        reinforced(rl_recipe, start, *settings, "rl.steps=3", "rl.kl_reference=copy", resume=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.group_size=1", "below the least, 2 .*compared with each other"),
        ("rl.temperature=0", "temperature 0 makes all rollouts"),
        ("rl.rewards=[]", "the list is empty"),
        ("rl.rewards=evenes", "Did you mean 'evenness'"),
        ("rl.stepz=3", "Did you mean 'steps'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_when_the_recipe_is_read(rl_recipe, override, words):
    with pytest.raises(RecipeErrors, match=words):
        load_recipe(rl_recipe, [override])


def test_a_recipe_without_a_second_stage_says_so(tiny_recipe, start):
    with pytest.raises(UsageError, match=r"has no section `rl:`"):
        reinforced(tiny_recipe, start)


def test_a_start_that_is_missing_or_in_the_way_is_refused(rl_recipe, start, tmp_path):
    with pytest.raises(RunError, match="nowhere does not exist"):
        reinforced(rl_recipe, tmp_path / "nowhere")
    run = reinforced(rl_recipe, start, "rl.steps=1")
    with pytest.raises(UsageError, match=r"another folder with rl\.run"):
        reinforced(rl_recipe, start, f"rl.init_from={run}")
    further = reinforced(rl_recipe, start, f"rl.init_from={run}", f"rl.run={tmp_path / 'further'}", "rl.steps=1")
    assert further == tmp_path / "further" and load(further)
    with pytest.raises(UsageError, match=r"rl\.freeze leaves nothing"):
        reinforced(rl_recipe, start, "rl.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]")


def test_resuming_with_other_inner_epochs_is_one_sentence_and_changes_nothing(rl_recipe, start):
    run = reinforced(rl_recipe, start, "rl.steps=1")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"rl\.inner_epochs 2 and the recipe has 3"):
        reinforced(rl_recipe, start, "rl.inner_epochs=3", resume=True, allow_changes=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_full_disk_at_a_checkpoint_leaves_the_previous_one_to_go_on_from(rl_recipe, start, monkeypatch):
    whole = reinforced(rl_recipe, start)
    expected = tensors(whole, 6)
    save, saved = native.save_file, []

    def fill(*args, **kwargs):
        saved.append(1)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(native, "save_file", fill)
        with pytest.raises(
            InputError, match=r"step-00000004 cannot be written .*Free disk space, then run again with --resume"
        ):
            reinforced(rl_recipe, start)
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["step-00000002"]
    assert different(tensors(reinforced(rl_recipe, start, resume=True), 6), expected) == []


def test_a_disk_too_full_for_drawings_does_not_end_the_run(rl_recipe, start, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise InputError("it cannot be written (No space left on device); make room.")

    monkeypatch.setattr(rl_drawing, "draw_trace", fail)
    run = reinforced(rl_recipe, start, "rl.steps=1", "rl.save_rollouts_every=1")
    assert "the rollouts of step 0 are not drawn" in caplog.text
    assert find_checkpoint(run).name == "step-00000002"


def test_an_error_between_steps_loses_none_of_them(rl_recipe, start):
    """The reward fails when it has scored the first step's rollouts."""
    plugin = rl_recipe.parent / "evenness.py"
    counted = "    evenness.calls = getattr(evenness, 'calls', 0) + 1\n    assert evenness.calls <= 8\n    own = "
    plugin.write_text(plugin.read_text().replace("    own = ", counted))
    assert cli.run(["rl", str(rl_recipe), f"run={start}", "rl.checkpoint_every=100"]) == 1
    assert find_checkpoint(start.with_name("run-rl")).name == "step-00000002"


@pytest.mark.parametrize("error", [InputError("sample 3: its image is gone."), KeyError("a defect of a task")])
def test_a_sample_that_becomes_unreadable_loses_no_step(rl_recipe, start, monkeypatch, error):
    collect = RolloutCollector.collect

    def collect_first(self, step, *arguments):
        if step == 1:
            raise error
        return collect(self, step, *arguments)

    monkeypatch.setattr(RolloutCollector, "collect", collect_first)
    with pytest.raises(type(error)):
        reinforced(rl_recipe, start, "rl.checkpoint_every=100")
    assert find_checkpoint(start.with_name("run-rl")).name == "step-00000002"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_precision_reinforces_on_a_cpu(rl_recipe, start, precision):
    recomputing = ["train.gradient_checkpointing=true", "train.language_model_checkpointing=1"]
    run = reinforced(rl_recipe, start, f"train.precision={precision}", *recomputing)
    assert different(tensors(run, 4), tensors(run, 6))
    assert all(tensor.isfinite().all() for tensor in tensors(run, 6).values())


def test_check_finds_what_is_wrong_with_the_second_stage(rl_recipe, capsys):
    assert cli.run(["check", str(rl_recipe)]) == 0
    everything = "rl.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]"
    assert cli.run(["check", str(rl_recipe), everything, "rl.split=night"]) == 2
    said = capsys.readouterr().err
    assert "rl.freeze leaves nothing" in said and "rl.split" in said and "night" in said
