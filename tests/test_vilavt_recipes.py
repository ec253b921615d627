"""The paper's recipes: with its shapes they assemble; with a tiny model underneath they train, answer and go out."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints import exporting
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.cli.app import run as command
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.training.trainable import select_trained, trainable_parameters

ROOT = Path(__file__).parents[1]
FOLDER, DATA = ROOT / "tests" / "golden" / "vilavt", ROOT / "tests" / "golden" / "vilavt_data"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
QUESTION = "Which colour is the lower square?\nA. red\nB. blue\nC. green"

# As the config.json of Qwen2.5-VL-7B-Instruct and of Qwen3-Embedding-0.6B say.
SEVEN_BILLION = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
EMBEDDING = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151669,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


def described(folder, config):
    """A folder as the hub has it before its weights are fetched."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        shutil.copyfile(FOLDER / name, folder / name)
    return folder


def described_start(folder):
    """The settings of a stage that starts from the plain Qwen2.5-VL, without its weights."""
    base, text = described(folder / "base", SEVEN_BILLION), described(folder / "text", EMBEDDING)
    plain = {"weight_map": {"visual.patch_embed.proj.weight": "model-00001-of-00005.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(plain))
    return [f"model.checkpoint={base}", f"model.inquiry_encoder.path={text}"]


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sft_is_of_the_papers_model_and_settings(tmp_path):
    recipe = load_recipe("vilavt_7b/sft", described_start(tmp_path))
    with torch.device("meta"):
        model = assemble_model(recipe.recipe.model)
    assert numbers(model.vision.backbone) + numbers(model.language_model) == 8_292_166_656
    assert numbers(model.vision.inquiry_encoder.model) == 595_776_512
    assert list(model.vision.modulators) == [str(block) for block in range(16, 32)]
    assert model.vision.backbone.spec.full_attention == (7, 15)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "vision.inquiry_encoder.projection.weight" in learning
    assert not any(name.startswith("vision.inquiry_encoder.model.") for name in learning)
    train = recipe.recipe.train
    assert (train.batch_size, train.schedule, train.optimizer.config.lr) == (32, "cosine", 5e-5)
    assert round(0.03 * train.steps) == train.warmup_steps


def test_with_adapters_an_eightieth_of_the_papers_weights_trains(tmp_path):
    recipe = load_recipe("vilavt_7b/sft_lora_24gb", described_start(tmp_path)).recipe
    with torch.device("meta"):
        model = assemble_model(recipe.model)
        select_trained(model, recipe.train)
    trained = {name: weight.numel() for name, weight in trainable_parameters(model)}
    # 28 layers of the language model and 32 of the tower have adapters, and what is new trains in full.
    assert sum(trained.values()) == 104_647_936
    adapted = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert len(adapted) == 28 * 7 + 32 * 4 and not any("merger" in name for name in adapted)
    in_full = {name for name in trained if ".lora_" not in name}
    assert in_full and all(name.startswith(("vision.modulators.", "vision.inquiry_encoder.")) for name in in_full)


@pytest.mark.parametrize("name", ["rl", "eval"])
def test_rl_and_eval_are_of_a_query_aware_checkpoint(tmp_path, name):
    vision = {**SEVEN_BILLION["vision_config"], "integration_point": "late", "fullatt_block_indexes": [7, 15]}
    config = {"model_type": "vilavt", "vision_config": vision, "text_encoder_config": EMBEDDING}
    released = described(tmp_path / "released", {**SEVEN_BILLION, **config})
    recipe = load_recipe(f"vilavt_7b/{name}", [f"model.checkpoint={released}"]).recipe
    with torch.device("meta"):
        model = assemble_model(recipe.model)
    assert list(model.vision.modulators) == [str(block) for block in range(16, 32)]
    assert recipe.model.stopping[1].config.turns == 10
    assert recipe.model.encoder.config.overview_total == 8192 * 28 * 28
    if recipe.rl is not None:
        clip = recipe.rl.policy_loss.config
        assert (recipe.rl.prompts_per_step, recipe.rl.group_size) == (64, 4)
        assert (recipe.rl.kl, recipe.rl.freeze) == (0.0, ["encoder"])
        assert (clip.eps_low, clip.eps_high, clip.dual_clip) == (0.2, 0.3, 3.0)


# --- With the tiny model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an SFT run from the golden weights, which are gone by now, and what was exported from it."""
    folder, before = tmp_path_factory.mktemp("vilavt"), Path.cwd()
    os.chdir(ROOT)
    try:
        shutil.copytree(FOLDER, folder / "weights")
        start = f"model.checkpoint={folder / 'weights'}"
        assert command(["train", "vilavt_7b/tiny_sft", start, f"run={folder / 'sft'}", "train.accelerator=cpu"]) == 0
        shutil.rmtree(folder / "weights")
        assert command(["export", str(folder / "sft"), "--to", str(folder / "out")]) == 0
        yield folder
    finally:
        os.chdir(before)


def ask(model):
    return vt.ask(str(DATA / "scene_0.png"), QUESTION, model=model, max_new_tokens=120)


@torch.no_grad()
def logits(model, trajectory, session):
    return model(collate([trajectory], [session.views], model.language_model))


def test_trained_on_the_papers_format_it_zooms_and_answers(runs):
    answer = ask(vt.load(runs / "sft", device="cpu"))
    assert (answer.text, answer.why) == ("B", "answered")
    (zoom,) = answer.trace.turns[0].regions
    assert answer.trace.turns[0].inquiry == "colour of the square" and zoom.crop.shape[:2] == (40, 40)


def test_with_adapters_and_frozen_weights_in_bfloat16_it_trains_and_goes_out_merged(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    where = [f"run={tmp_path / 'run'}", "train.steps=2", "train.accelerator=cpu"]
    assert command(["train", "vilavt_7b/tiny_sft_lora_24gb", *where]) == 0
    saved = load_file(find_checkpoint(tmp_path / "run") / "model.safetensors")
    assert any(".lora_B." in name and value.any() for name, value in saved.items())
    assert saved["language_model.lm_head.weight"].dtype == torch.bfloat16
    assert command(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_a_run_names_the_checkpoint_it_began_as_no_more(runs):
    saved = find_checkpoint(runs / "sft") / "recipe.yaml"
    assert load_recipe(saved).recipe.model.checkpoint == ""
    assert vt.load(runs / "sft", device="cpu").tokenize_inquiry("a red square")[-1] == 0


def test_exported_and_loaded_again_it_has_the_same_logits(runs):
    ours, theirs = vt.load(runs / "sft", device="cpu"), vt.load(runs / "out", device="cpu")
    answer = ask(ours)
    one, other = (logits(model, answer.trajectory, answer.session) for model in (ours, theirs))
    assert torch.equal(one, other)


def test_reinforcement_from_the_exported_folder_changes_the_modulation_and_not_the_tower(runs):
    start = f"model.checkpoint={runs / 'out'}"
    assert command(["rl", "vilavt_7b/tiny_rl", start, f"run={runs / 'none'}", f"rl.run={runs / 'rl'}"]) == 0
    before, after = (vt.load(runs / name, device="cpu").vision for name in ("out", "rl"))
    towers = zip(before.backbone.parameters(), after.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in towers)
    pairs = zip(before.modulators.parameters(), after.modulators.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_evaluated_without_a_run(runs):
    where = f"run={runs / 'eval'}"
    assert command(["eval", "vilavt_7b/tiny_eval", f"model.checkpoint={runs / 'out'}", where]) == 0
    summary = json.loads((runs / "eval" / "eval" / "summary.json").read_text())
    assert summary["checkpoint"] == str(runs / "out") and set(summary["arms"]) == {"modulated"}


def test_a_native_folder_is_a_run_for_whoever_loads_it(runs):
    assert command(["export", str(runs / "sft"), "--to", str(runs / "native"), "--format", "native"]) == 0
    assert {"config.json", "recipe.yaml", "model.safetensors"} <= {file.name for file in (runs / "native").iterdir()}
    assert not list((runs / "native").rglob("resume*"))
    moved = (runs / "native").rename(runs / "moved")
    assert ask(vt.load(moved, device="cpu")).text == "B"
    with pytest.raises(InputError, match="has no recipe, which a native one needs"):
        exporting.export(runs / "out", runs / "again", "native")


def test_an_export_is_written_in_the_type_that_is_asked_for(runs):
    exporting.export(runs / "sft", runs / "half", dtype="bfloat16")
    assert {value.dtype for value in load_file(runs / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((runs / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_refuses_a_folder_with_something_in_it_and_an_unknown_format(runs, capsys):
    assert command(["export", str(runs / "sft"), "--to", str(runs / "sft")]) == 1
    assert "holds something already" in capsys.readouterr().err
    assert command(["export", str(runs / "sft"), "--to", str(runs / "x"), "--format", "vilvat"]) == 2
    assert "Did you mean 'vilavt'?" in capsys.readouterr().err


def test_check_sees_damaged_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shutil.copytree(FOLDER, tmp_path / "weights")
    file = tmp_path / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert command(["check", "vilavt_7b/tiny_eval", f"model.checkpoint={tmp_path / 'weights'}"]) == 2
    assert "model.checkpoint: " in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_all_that_is_complained_of(capsys):
    assert command(["check", "vilavt_7b/tiny_eval", "model.checkpoint=./nowhere"]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "model.checkpoint: checkpoint './nowhere' does not exist" in told


@pytest.mark.parametrize("stage", ["train", "rl"])
def test_no_stage_starts_on_samples_that_its_model_cannot_take(tmp_path, monkeypatch, capsys, stage):
    monkeypatch.chdir(ROOT)
    if stage == "train":
        rows = json.loads((DATA / "sft.json").read_text(encoding="utf-8"))
        rows[1]["conversations"][0]["value"] += " word" * 30_000
        recipe = "vilavt_7b/tiny_sft"
    else:
        rows = [json.loads(line) for line in (DATA / "rl.jsonl").read_text(encoding="utf-8").splitlines()]
        rows[1]["question"] += " word" * 30_000
        recipe = "vilavt_7b/tiny_rl"
    file = tmp_path / "long.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    place = f"{'rl.' if stage == 'rl' else ''}run={tmp_path / 'run'}"
    assert command([stage, recipe, f"task.files={file}", f"task.root={DATA}", place, "train.accelerator=cpu"]) == 1
    told = capsys.readouterr().err
    # Recipes of `train` cut samples at turns, and what cannot be cut is told as such.
    reason = "context of 4,096 tokens, and so is its first turn alone" if stage == "train" else "context of 4,096"
    assert "1 of " in told and str(file) in told and reason in told, told
    assert not (tmp_path / "run" / "checkpoints").exists()
