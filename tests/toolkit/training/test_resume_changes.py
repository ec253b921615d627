"""What differs when a run is resumed: refused if it changes what is learned, unless told; the rest goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.resume_changes import check_data, check_settings
from vilavt_toolkit.training.supervised.run import run_supervised

ROW = {"conversations": [{"from": "human", "value": "which one?"}, {"from": "gpt", "value": "the red one"}]}

NORMS = "model.language_model.norms=apex_rms_norm"


def compare(recipe: Path, run: Path, *overrides: str, stage: str = "train", allow_changes: bool = False) -> None:
    check_settings(load_recipe(recipe, overrides), find_checkpoint(run), stage, allow_changes)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=4", r"train\.batch_size=4 \(was 8\)"),
        ("task.train_items=16", r"task\.train_items=16 \(was 32\)"),
        ("task={name: conversations, files: [a.json]}", r'task="conversations" \(was "digit_scenes"\)'),
        ("seed=4", r"seed=4 \(was 3\)"),
        ("train.optimizer.lr=0.5", r"train\.optimizer\.lr=0\.5 \(was 0\.001\)"),
        ("train.ema=0.9", r"train\.ema=0\.9 \(was null\)"),
        ("train.precision=bf16-mixed", r'train\.precision="bf16-mixed"'),
        ("train.max_samples=3", r"train\.max_samples=3 \(was null\)"),
        ("model.language_model.config.attention_dropout=0.2", r"attention_dropout=0\.2 \(was not set\)"),
        ("model.modulator=[film,film]", r"model\.modulator="),
        ("model.dialogue.system=Be kind.", r'model\.dialogue\.system="Be kind\."'),
    ],
)
def test_a_setting_that_changes_what_is_learned_is_refused_unless_told(tiny_recipe, tiny_run, caplog, override, words):
    with pytest.raises(RunError, match=f"{words}.* --allow-changes") as refused:
        compare(tiny_recipe, tiny_run, override)
    assert len(str(refused.value)) < 600
    compare(tiny_recipe, tiny_run, override, allow_changes=True)
    assert "was made with other settings" in caplog.text


def test_everything_that_differs_is_listed_at_once(tiny_recipe, tiny_run):
    with pytest.raises(RunError, match=r"task\.train_items.*train\.batch_size"):
        compare(tiny_recipe, tiny_run, "train.batch_size=4", "task.train_items=16")


def test_what_changes_speed_and_output_alone_goes_on_without_a_word(tiny_recipe, tiny_run, caplog):
    free = ["workers=2", "threads=1", "log_every=1", "checkpoint_every=9", "preprocess=ahead", "accelerator=auto"]
    others = ["run=elsewhere", "eval.items=3", "model.cudnn_attention=true", NORMS]
    compare(tiny_recipe, tiny_run, *others, *(f"train.{each}" for each in free))
    assert not caplog.text


def test_larger_rows_go_on_and_are_told_unless_samples_are_cut_to_them(tiny_recipe, tiny_run, tmp_path, caplog):
    compare(tiny_recipe, tiny_run, "train.pack_tokens=900", "train.pack_patches=4000")
    assert "train.pack_tokens=900 (was null), train.pack_patches=4000 (was null)" in caplog.text
    cutting = tmp_path / "cutting"
    shutil.copytree(tiny_run, cutting)
    for file in cutting.rglob("recipe.yaml"):
        file.write_text(file.read_text().replace("long_samples: refuse", "long_samples: cut"))
    with pytest.raises(RunError, match=r"train\.pack_tokens=900 \(was null\)"):
        compare(tiny_recipe, cutting, "train.pack_tokens=900", "train.long_samples=cut")


def test_more_steps_and_smaller_micro_batches_go_on_and_are_told(tiny_recipe, tiny_run, caplog):
    compare(tiny_recipe, tiny_run, "train.steps=9", "train.micro_batch=2")
    assert "train.steps=9 (was 4), train.micro_batch=2 (was null)" in caplog.text


def test_a_stage_is_compared_by_what_it_reads(rl_recipe, tiny_run):
    """Reinforcement takes of section `train` the number format alone, and `train` takes nothing of section `rl`."""
    without = ["rl=null", "train.batch_size=4"]
    compare(rl_recipe, tiny_run, *without, stage="rl")
    with pytest.raises(RunError, match=r"train\.precision"):
        compare(rl_recipe, tiny_run, *without, "train.precision=bf16-true", stage="rl")
    with pytest.raises(RunError, match=r"rl=\{.*\(was null\)"):
        compare(rl_recipe, tiny_run, stage="rl")
    compare(rl_recipe, tiny_run, "rl.group_size=9")


def test_a_plugin_with_other_content_is_told(tiny_recipe, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("VALUE = 1\n")
    settings = [f"plugins=[{plugin}]", f"run={tmp_path / 'run'}"]
    run = run_supervised(load_recipe(tiny_recipe, [*settings, "train.steps=1"]))
    compare(tiny_recipe, run, *settings)
    plugin.write_text("VALUE = 2\n")
    with pytest.raises(RunError, match=r"the plugin mine\.py has other content"):
        compare(tiny_recipe, run, *settings)


def test_a_recipe_of_parts_that_are_no_more_is_refused_unless_told(tiny_recipe, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    file = find_checkpoint(run) / "recipe.yaml"
    file.write_text(file.read_text().replace("name: film", "name: gone"))
    with pytest.raises(RunError, match=r"cannot be compared: .*'gone'.* --allow-changes"):
        compare(tiny_recipe, run)
    compare(tiny_recipe, run, allow_changes=True)


def test_a_data_file_that_was_edited_is_refused_unless_told(tiny_recipe, tmp_path):
    file, run = tmp_path / "rows.json", tmp_path / "run"
    settings = [f"run={run}", f"task={{name: conversations, files: [{file}]}}", "train.batch_size=2"]

    def write(*answers: str) -> None:
        rows = [{**ROW, "conversations": [ROW["conversations"][0], {"from": "gpt", "value": a}]} for a in answers]
        file.write_text(json.dumps([{"id": str(number), **row} for number, row in enumerate(rows)]))

    def resume(allow_changes: bool = False) -> Path:
        return run_supervised(load_recipe(tiny_recipe, [*settings, "train.steps=2"]), True, allow_changes)

    write("the red one", "the blue one")
    run_supervised(load_recipe(tiny_recipe, [*settings, "train.steps=1"]))
    for answers, sizes in ((("the red one", "the gray one"), "2 samples before, 2 now"), (("a",) * 3, "3 now")):
        write(*answers)
        with pytest.raises(RunError, match=f"split 'train' is not the one .*{sizes}.*--allow-changes"):
            resume()
    resume(allow_changes=True)
    assert check_data(None, load_recipe(tiny_recipe, settings).recipe.task.build(), "train", False)["samples"] == 3
