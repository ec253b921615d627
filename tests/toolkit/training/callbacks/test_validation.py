"""Validation while training: same metrics as by hand, nothing learned from it, the best step kept, an early end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vilavt_toolkit.checkpoints.loading import load
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue import session as dialogue_session
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError, RecipeErrors, UsageError
from vilavt_toolkit.evaluation.arms import evaluate_arms
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.training.losses import target_logprobs
from vilavt_toolkit.training.supervised import validation
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.supervised.validation import Validator, choose_indices, select_drawn

FEW = ["task.val_items=6", "train.validate_samples=5", "train.validate_dialogues=2", "train.trackers=[csv]"]


def train(recipe: Path, run: Path, *overrides: str, resume: bool = False) -> Path:
    return run_supervised(load_recipe(recipe, [f"run={run}", *FEW, *overrides]), resume)


def weights(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def validations(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every validation by the steps taken before it."""
    found = {}
    for file in sorted((run / "logs" / "csv").glob("*/metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if row.get("val/loss"):
                    found[int(row["step"]) + 1] = {
                        key: float(value) for key, value in row.items() if key.startswith("val/")
                    }
    return found


@pytest.fixture(scope="module")
def validated(_tiny_folder, tmp_path_factory) -> Path:
    """Four steps with dropout, validated every second; tests copy it to change it."""
    run = tmp_path_factory.mktemp("validated") / "run"
    return train(_tiny_folder / "tiny.yaml", run, "train.validate_every=2", *DROPOUT)


DROPOUT = ["model.language_model.config.attention_dropout=0.2"]


def test_a_run_learns_the_same_with_and_without_validations(tiny_recipe, validated, tmp_path):
    plain = train(tiny_recipe, tmp_path / "plain", *DROPOUT)
    for name in ("model", "resume"):
        found, expected = weights(validated, 4, name), weights(plain, 4, name)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert validations(plain) == {} and sorted(validations(validated)) == [2, 4]


def test_the_loss_is_that_of_the_saved_model_over_the_tokens_of_split_val(tiny_recipe, validated):
    recipe, model = load_recipe(tiny_recipe, FEW).recipe, load(validated)
    task, total, count = recipe.task.build(), 0.0, 0
    for index in choose_indices(6, 5, recipe.seed, 1):
        session = build_trace_session(model, task.sample("val", index))
        batch = collate([session.trajectory], [session.views], model.language_model)
        with torch.no_grad():
            logprobs = target_logprobs(model.language_model, model.run_layers(batch), batch)
        total, count = total - float(logprobs.sum()), count + len(logprobs)
    assert validations(validated)[4]["val/loss"] == pytest.approx(total / count, rel=1e-5)


def test_dialogues_are_asked_and_scored_as_an_evaluation_does(tiny_recipe, validated):
    recipe = load_recipe(tiny_recipe, [*FEW, "eval.split=val", "eval.arms=[modulated]"]).recipe
    task, model = recipe.task.build(), load(validated)
    asked = evaluate_arms(model, task, recipe.eval, recipe.seed)
    chosen = choose_indices(6, 2, recipe.seed, 2)
    validator = Validator(model, task, recipe.train, recipe.eval, recipe.seed)
    led = validator.lead_dialogues()
    for index, dialogue in zip(chosen, led, strict=True):
        expected = asked["modulated"][index]
        assert dialogue.sample.id == expected.sample.id and dialogue.score == expected.score
        assert dialogue.session.trajectory.ids == expected.trajectory.ids
    mean = sum(dialogue.score for dialogue in led) / 2
    assert validations(validated)[4]["val/accuracy"] == pytest.approx(mean)


def test_two_processes_measure_together_what_one_does(tiny_recipe, tiny_model, tiny_task):
    section = load_recipe(tiny_recipe, [*FEW, "train.micro_batch=2"]).recipe.train
    asking = load_recipe(tiny_recipe).recipe.eval
    validator = Validator(tiny_model, tiny_task, section, asking, 0)
    with torch.no_grad():
        whole = validator.measure_targets()
        parts = [validator.measure_targets(rank, 2) for rank in range(2)]
    for key in ("logprobs", "hits", "count"):
        assert sum(getattr(part, key) for part in parts) == pytest.approx(getattr(whole, key))
    assert all(part.count for part in parts)


def test_validations_are_the_same_in_workers_and_in_a_resumed_run(tiny_recipe, validated, tmp_path):
    broken = Path(shutil.copytree(validated, tmp_path / "broken", symlinks=True))
    shutil.rmtree(broken / "checkpoints" / "step-00000004")
    train(tiny_recipe, broken, "train.validate_every=2", *DROPOUT, "train.workers=1", resume=True)
    assert validations(broken) == validations(validated)
    folders = [run / "checkpoints" / "step-00000004" for run in (broken, validated)]
    resumed, unbroken = (load_training_state(folder).data["validation"] for folder in folders)
    assert resumed == unbroken and resumed["step"] == 4


def test_the_best_step_is_saved_linked_and_kept(tiny_recipe, tmp_path, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 6.0, 2.0, 7.0])
    measure = validation.Validator.measure_targets

    def measured(self, *arguments):
        sums = measure(self, *arguments)
        sums.logprobs = -next(losses) * sums.count
        return sums

    monkeypatch.setattr(validation.Validator, "measure_targets", measured)
    settings = ["train.validate_every=1", "train.checkpoint_every=9", "train.keep_checkpoints=1"]
    run = train(tiny_recipe, tmp_path / "run", *settings, "train.steps=4")
    checkpoints = run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "step-00000002", "step-00000004"]
    assert (checkpoints / "best").resolve().name == "step-00000002"
    assert [validations(run)[step]["val/loss"] for step in (1, 2, 3, 4)] == pytest.approx([5, 3, 4, 6])
    train(tiny_recipe, run, *settings, "train.steps=6", resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "step-00000005", "step-00000006"]
    assert (checkpoints / "best").resolve().name == "step-00000005"
    load(checkpoints / "best")


def test_training_ends_early_and_a_resumed_run_takes_no_step_until_told(tiny_recipe, tmp_path, monkeypatch, caplog):
    measure = validation.Validator.measure_targets

    def measured(self, *arguments):
        sums = measure(self, *arguments)
        sums.logprobs = -sums.count
        return sums

    monkeypatch.setattr(validation.Validator, "measure_targets", measured)
    settings = ["train.validate_every=1", "train.steps=9", "train.checkpoint_every=9", "train.validate_dialogues=0"]
    run = train(tiny_recipe, tmp_path / "run", *settings, "train.patience=2")
    names = ["best", "step-00000001", "step-00000003"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    assert "val/loss has not become better in 2 validations since step 1" in caplog.text
    train(tiny_recipe, run, *settings, "train.patience=2", resume=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    train(tiny_recipe, run, *settings, "train.patience=4", resume=True)
    assert (run / "checkpoints" / "step-00000005").is_dir()


def test_a_step_that_was_saved_before_its_validation_is_validated_when_resumed(tiny_recipe, tmp_path):
    settings = ["train.validate_every=2", "train.validate_dialogues=0"]
    whole = train(tiny_recipe, tmp_path / "whole", *settings)
    broken = train(tiny_recipe, tmp_path / "broken", "train.steps=2", "train.schedule=linear")
    assert validations(broken) == {}
    state = broken / "checkpoints" / "step-00000002" / "resume.json"
    assert "validation" not in json.loads(state.read_text())
    train(tiny_recipe, broken, *settings, resume=True)
    assert sorted(validations(broken)) == sorted(validations(whole)) == [2, 4]


def test_dialogues_are_drawn_for_trackers_that_take_pictures(tiny_recipe, tmp_path):
    run = train(tiny_recipe, tmp_path / "run", "train.validate_every=4", "train.trackers=[tensorboard]")
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    shown = [events.Images(tag) for tag in events.Tags()["images"]]
    assert 1 <= len(shown) <= 2 and all(image.step == 3 and image.width > 500 for (image,) in shown)
    assert [event.step for event in events.Scalars("val/loss")] == [3]


def test_dialogues_with_a_zoom_are_drawn_first(tiny_recipe, tiny_model, tiny_task):
    class Dialogue:
        def __init__(self, calls, sources=(1,)):
            self.session = type("S", (), {"calls": calls, "sources": sources})()

    plain, zoomed, text = Dialogue(0), Dialogue(2), Dialogue(1, ())
    assert select_drawn([plain, text, zoomed]) == [zoomed, plain]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.patience=1"], "Set validate_every too"),
        (["train.best_by=accuracy", "train.validate_dialogues=0"], "best_by accuracy needs dialogues"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny_recipe, settings, words):
    with pytest.raises(RecipeErrors, match=words):
        load_recipe(tiny_recipe, settings)


ROWS = [
    {
        "id": str(number),
        "conversations": [
            {"from": "human", "value": f"which one of {number}?"},
            {"from": "gpt", "value": f"the {colour} one"},
        ],
    }
    for number, colour in enumerate(["red", "blue", "gray", "green"])
]


def test_rows_held_out_of_a_data_file_are_validated_on_as_they_are_learned_from(tiny_recipe, tmp_path):
    file, held_out = tmp_path / "rows.json", tmp_path / "val.json"
    file.write_text(json.dumps(ROWS[:3]))
    held_out.write_text(json.dumps(ROWS[3:]))
    task = f"task={{name: conversations, files: [{file}], val_files: [{held_out}]}}"
    settings = [task, "train.batch_size=2", "train.validate_every=4", "train.trackers=[csv]"]
    run = run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}", *settings]))
    assert validations(run)[4]["val/loss"] > 0
    built = load_recipe(tiny_recipe, settings).recipe.task.build()
    assert built.sample("val", 0).conversation is None and built.training_sample("val", 0).conversation is not None
    with pytest.raises(IndexError):
        built.training_sample("val", 1)
    without = [f"task={{name: conversations, files: [{file}]}}", *settings[1:]]
    with pytest.raises(UsageError, match=r"task\.val_files or task\.val_share"):
        run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'other'}", *without]))


def test_a_sample_that_cannot_be_asked_ends_the_run_behind_a_saved_step(tiny_recipe, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise InputError("image 7.png cannot be read.")

    monkeypatch.setattr(dialogue_session, "session_for", refuse)
    with pytest.raises(InputError, match=r"^sample digit_scenes/0/val/\d: image 7\.png"):
        train(tiny_recipe, tmp_path / "run", "train.validate_every=3", "train.checkpoint_every=9")
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
