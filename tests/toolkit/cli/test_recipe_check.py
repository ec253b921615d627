"""`vilavt check` says what of a recipe is trained and how long its samples are, and refuses what `train` would."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vilavt_toolkit.checkpoints.run_lock import RunLock
from vilavt_toolkit.cli.app import run


@pytest.fixture(autouse=True)
def wide(monkeypatch) -> None:
    """Tables are as wide as into a file, also where the test runner sets a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


def refused(capsys, *arguments: str) -> str:
    """Check a recipe that must be refused; what is said."""
    assert run(["check", *arguments]) != 0
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


def passes(capsys, *arguments: str) -> str:
    assert run(["check", *arguments]) == 0
    return capsys.readouterr().out


def rows(folder: Path, *given: dict) -> str:
    """A data file of rows with questions and answers, and the words that name it."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    return f"task={{name: questions, files: {path}, test_files: {path}}}"


def test_it_tells_what_is_trained_and_how_long_samples_are_and_creates_nothing(
    tiny_recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = passes(capsys, str(tiny_recipe), "train.freeze=[encoder]", "run=here")
    assert "trained in train" in said
    assert re.search(r"encoder.*frozen", said) and re.search(r"language model.*all", said)
    line = next(line for line in said.splitlines() if line.startswith("train: "))
    assert re.search(r"\d view.? of \d+ encoder tokens \(\d+ features\)", said), line
    assert re.search(r"[\d,]+ tokens, [\d,]+ of them features, of a context of 384", " ".join(said.split()))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_it_tells_the_learning_rate_and_decay_of_every_part_and_the_names_of_weights(tiny_recipe, capsys):
    rates = 'train.rates={projector: {lr: 0.002}, "language_model.*norm*": {lr: 0.0003}}'
    said = passes(capsys, str(tiny_recipe), "train.freeze=[encoder]", rates, "train.optimizer.weight_decay=0.25")
    # Every line of a table begins and ends with a border.
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines()]
    mine = {(row[1], row[5]): row for row in rows if len(row) == 7 and row[0] == "train"}
    assert int(mine["encoder", ""][4].replace(",", "")) > 0 and mine["encoder", ""][2] == ""
    assert "0.25: " in mine["projector", "0.002"][6] and ", 0: " in mine["projector", "0.002"][6]
    assert mine["language model", "0.0003"][6] == f"0: {mine['language model', '0.0003'][2]}"
    assert "names of weights" not in said
    listed = passes(capsys, str(tiny_recipe), "--names")
    assert "language_model.model.model.layers.*.self_attn.q_proj.weight" in listed


def test_it_tells_over_how_many_steps_the_mean_of_the_weights_reaches(tiny_recipe, capsys):
    assert "train.ema" not in passes(capsys, str(tiny_recipe))
    said = " ".join(passes(capsys, str(tiny_recipe), "train.ema=0.99", "train.steps=1000").split())
    assert "train.ema=0.99: checkpoints and validations have the mean" in said
    assert "over about 100 of 1,000 steps." in said
    said = " ".join(passes(capsys, str(tiny_recipe), "train.ema=0.999", "train.steps=1000").split())
    assert "over about 1,000 of 1,000 steps, which is too few for a mean." in said


def test_a_pattern_that_matches_nothing_is_refused_with_its_key_for_every_stage(tiny_recipe, capsys):
    told = refused(capsys, str(tiny_recipe), "train.freeze=[language_model.*q_prj*]")
    assert "train.freeze: " in told and "q_proj" in told and "--names" in told


def test_a_new_projector_that_would_be_frozen_at_random_is_refused(tiny_recipe, capsys):
    told = refused(capsys, str(tiny_recipe), "train.freeze=[projector]")
    assert "train.freeze: projector." in told and "train.freeze_new=true" in told
    passes(capsys, str(tiny_recipe), "train.freeze=[projector]", "train.freeze_new=true")


def test_features_that_do_not_fit_the_context_are_refused(tiny_recipe, capsys):
    told = refused(capsys, str(tiny_recipe), "model.language_model.config.max_position_embeddings=40")
    assert re.search(
        r"task: sample .*: [\d,]+ tokens, [\d,]+ of them features, are more than the context of 40\.", told
    )


def test_an_original_that_cannot_be_opened_is_refused_with_its_row(tiny_recipe, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "right.png")
    row = {"question": "what?", "answer": "x", "image": "right.png"}
    assert "context of 384" in " ".join(passes(capsys, str(tiny_recipe), rows(tmp_path, row)).split())
    told = refused(capsys, str(tiny_recipe), rows(tmp_path, row, {**row, "image": "broken.png"}))
    assert "rows.jsonl, line 2" in told and "broken.png" in told


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A causal language model as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from vilavt_components.language_models.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = train_tokenizer(["what digit is it? 0 1 2 3"], [], 400, "<|feature|>")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **small, vocab_size=len(tokenizer), max_position_embeddings=4096)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.backend.save_pretrained(folder)
    return folder


def test_weights_of_another_architecture_are_refused(tiny_recipe, pretrained, tmp_path, capsys):
    named = f"model.language_model={{name: hf_causal, path: {pretrained}}}"
    assert "hf_causal" in passes(capsys, str(tiny_recipe), named)
    tensors = load_file(pretrained / "model.safetensors")
    lacking = {name: value for name, value in tensors.items() if "layers.1.mlp.up_proj" not in name}
    for changed, words in ((lacking, "lack model.layers.1.mlp.up_proj"), ({"a": torch.zeros(2)}, "its weights lack")):
        folder = tmp_path / words.replace(" ", "-")
        folder.mkdir()
        for file in pretrained.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        told = refused(capsys, str(tiny_recipe), f"model.language_model={{name: hf_causal, path: {folder}}}")
        assert "model.language_model: " in told and words in told
    told = refused(capsys, str(tiny_recipe), f"model.encoder.path={pretrained / 'model.safetensors'}")
    assert "model.encoder: " in told and "of another architecture" in told


def test_a_family_that_cannot_be_read_is_refused_by_name(tiny_recipe, capsys):
    told = refused(capsys, str(tiny_recipe), "model.language_model.config.model_type=qwen3_5_text")
    assert "model.language_model: hf_causal: models of type 'qwen3_5_text' cannot be used" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.accelerator=warp", "train.accelerator 'warp'"),
        ("run=taken", "taken is a file"),
        ("run=others", "others holds files that are no run"),
        ("train.init_from=nowhere", "train.init_from: "),
        ("train.freeze=[encoder, modulator, inquiry_encoder, projector, language_model]", "nothing to train"),
        ("model.language_model.config.vocab_size=100", "Set vocab_size to"),
        ("model.language_model.config.vocab_size=7", "Set vocab_size to"),
        ("model.language_model.config.attention_dropout=5", "attention_dropout: 5 is above the most, 1"),
        ("model.language_model.config.output_attentions=true", "`config` builds no causal language model"),
        ("model.encoder.config.in_chans=4", "in_chans is 4 (int), and pictures have 3 channels. Leave it out"),
        ("model.encoder.config.attn_drop_rate=-0.5", "attn_drop_rate: -0.5 is below the least, 0"),
        ("train.accelerator=tpu", "train.accelerator 'tpu'"),
    ],
)
def test_what_train_refuses_before_its_first_step_is_refused(tiny_recipe, tmp_path, capsys, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("x")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "letter.txt").write_text("x")
    assert words in refused(capsys, str(tiny_recipe), change)


def test_a_folder_in_which_a_run_lives_and_a_second_process_are_refused(tiny_recipe, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "live"
    with RunLock(folder):
        assert "is in use by process" in refused(capsys, str(tiny_recipe), f"run={folder}")
    assert not folder.exists()
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "WORLD_SIZE is 8" in refused(capsys, str(tiny_recipe))


def test_the_weights_that_training_starts_from_are_compared_with_the_model(tiny_recipe, tiny_run, capsys):
    start = f"train.init_from={tiny_run}"
    assert "trained in train" in passes(capsys, str(tiny_recipe), start, f"run={os.devnull}-not")
    told = refused(capsys, str(tiny_recipe), start, "model.projector.hidden_dim=16")
    assert "train.init_from: " in told and "projector" in told
