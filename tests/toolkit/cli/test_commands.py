"""The command line from a recipe to an answer; what a user does wrong is one sentence and the right exit code."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vilavt_toolkit as vt
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.errors import UsageError


@pytest.fixture
def scene(tmp_path) -> Path:
    """A picture on disk."""
    path = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def test_a_recipe_is_trained_evaluated_and_asked(tiny_recipe, scene, tmp_path, capsys):
    folder, trace = tmp_path / "run", tmp_path / "trace.png"
    assert run(["train", str(tiny_recipe), "train.steps=2", f"run={folder}"]) == 0
    assert f"vilavt eval {folder}" in capsys.readouterr().out
    assert run(["eval", str(folder), "eval.items=4", "eval.max_new_tokens=8"]) == 0
    assert "modulated" in capsys.readouterr().out
    assert len((folder / "eval" / "items.jsonl").read_text().splitlines()) == 20
    assert run(["ask", str(folder), str(scene), "what digit is on the red square?", "--trace", str(trace)]) == 0
    shown = capsys.readouterr().out
    assert "stopped: " in shown and "tokens written" in shown and str(trace) in shown
    assert min(Image.open(trace).size) >= 200, "large enough to read"
    assert run(["train", str(tiny_recipe), "train.steps=3", f"run={folder}", "--resume"]) == 0
    assert json.loads(next(folder.glob("checkpoints/*3/checkpoint.json")).read_text())["step"] == 3


def test_python_trains_and_evaluates_as_the_commands_do(tiny_recipe, tmp_path, capsys):
    run_folder = vt.train(tiny_recipe, ["train.steps=1", f"run={tmp_path / 'run'}"])
    assert run_folder == tmp_path / "run" and vt.load(run_folder)
    summary = vt.evaluate(run_folder, ["eval.items=2", "eval.arms=[modulated]", "eval.max_new_tokens=4"], name="mine")
    assert summary == json.loads((run_folder / "eval-mine" / "summary.json").read_text())
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="has been trained"):
        vt.evaluate(tiny_recipe, [f"run={run_folder}"])
    with pytest.raises(UsageError, match="no section `rl:`"):
        vt.reinforce(tiny_recipe)


def test_what_a_setting_replaces_is_told_as_a_note(tiny_recipe, capsys):
    assert run(["check", str(tiny_recipe), "model.stopping=[{name: model_decides}]", "model.modulator=none"]) == 0
    assert run(["check", str(tiny_recipe), "model.dialogue={name: native}", "model.projector=identity"]) == 0
    said = capsys.readouterr().err
    assert said.splitlines() == [
        f"note: command line: model.projector: 'identity' replaces 'mlp' of {tiny_recipe}. Dropped settings of 'mlp': "
        "hidden_dim."
    ]


def test_several_images_can_be_asked_about(tiny_run, scene, capsys):
    assert run(["ask", str(tiny_run), str(scene), str(scene), "which is darker?"]) == 0
    assert "regions" in capsys.readouterr().out


def bomb(path: Path) -> None:
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_IMAGES = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an image"),
    "truncated": truncated,
    "bomb": bomb,
    "folder": lambda path: path.mkdir(),
}


def told(arguments: list[str], code: int, capsys) -> str:
    """Run a command that must fail; its one sentence."""
    assert run(arguments) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if not line.startswith((" ", "WARNING", "INFO"))]
    assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
    assert captured.out == "", "nothing is said that is not so"
    return lines[0]


@pytest.mark.parametrize("make", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_file_that_is_no_good_image_is_named(tiny_run, tmp_path, capsys, make):
    path, trace = tmp_path / "bad.png", tmp_path / "trace.png"
    make(path)
    message = told(["ask", str(tiny_run), str(path), "what?", "--trace", str(trace)], 1, capsys)
    assert "bad.png" in message and message.startswith("InputError: ")
    assert not trace.exists()


def test_a_question_that_cannot_be_asked_is_one_sentence(tiny_run, scene, capsys):
    assert "question does not fit" in told(["ask", str(tiny_run), str(scene), "why? " * 3000], 1, capsys)
    assert "no valid text" in told(["ask", str(tiny_run), str(scene), "what \udcff?"], 1, capsys)
    assert "at least one image" in told(["ask", str(tiny_run), "what?"], 2, capsys)


def test_what_cannot_be_explained_still_has_its_answer_and_its_trace(tiny_run, scene, tmp_path, capsys, caplog):
    assert "Add `--trace trace.png`" in told(["ask", str(tiny_run), str(scene), "what?", "--explain"], 2, capsys)
    trace = tmp_path / "trace.png"
    assert run(["ask", str(tiny_run), str(scene), "what?", "--trace", str(trace), "--explain"]) == 0
    assert "the model did not zoom" in caplog.text
    assert trace.is_file() and "stopped: " in capsys.readouterr().out


def test_an_answer_is_one_line_of_json_and_a_seed_gives_it_again(tiny_run, scene, tmp_path, capsys):
    def asked(*options: str) -> dict:
        assert run(["ask", str(tiny_run), str(scene), "what?", "--json", "--max-new-tokens", "8", *options]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    sampled = asked("--temperature", "1", "--seed", "3", "--trace", str(tmp_path / "trace.png"))
    assert sampled["turns"][0]["malformed"] and (tmp_path / "trace.png").is_file()
    again, other = (asked("--temperature", "1", "--seed", seed) for seed in ("3", "4"))
    assert again["turns"] == sampled["turns"] != other["turns"]
    assert "finite" in told(["ask", str(tiny_run), str(scene), "what?", "--temperature", "-1"], 2, capsys)


@pytest.mark.parametrize("command", [["eval"], ["ask"]], ids=str)
def test_a_folder_without_a_checkpoint_is_named(scene, tmp_path, capsys, command):
    rest = [str(scene), "what?"] if command == ["ask"] else []
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in told([*command, str(tmp_path / "empty"), *rest], 1, capsys)
    assert "does not exist" in told([*command, str(tmp_path / "none"), *rest], 1, capsys)


@pytest.mark.parametrize("command", [["eval"], ["ask"]], ids=str)
def test_a_damaged_checkpoint_is_a_failure_not_a_usage_error(tiny_run, scene, tmp_path, capsys, command):
    rest = [str(scene), "what?"] if command == ["ask"] else []
    damaged = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (damaged / "checkpoints" / "step-00000004" / "recipe.yaml").unlink()
    assert "recipe.yaml" in told([*command, str(damaged), *rest], 1, capsys)
    assert not (damaged / "eval").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.modulator.name=flim", "Did you mean 'film'?"),
        ("model.modulator.hiden_dim=3", "model.modulator.hiden_dim"),
        ("train.stepz=3", "Did you mean 'steps'?"),
        ("train.steps=many", "train.steps"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.steps=0", "train.steps"),
        ("train.precision=16-mixed", "needs a CUDA GPU"),
        ("train.accelerator=abacus", "train.accelerator"),
        ("task.cells=7", "cells"),
        ("model.encoder.config.num_heads=5", "model.encoder"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_recipe_that_cannot_be_meant_trains_nothing(tiny_recipe, tmp_path, capsys, override, words):
    folder = tmp_path / "run"
    assert words in run_error(["train", str(tiny_recipe), f"run={folder}", override], 2, capsys)
    assert not folder.exists()


def run_error(arguments: list[str], code: int, capsys) -> str:
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_recipe_that_is_no_recipe_is_named(tmp_path, capsys):
    for name, text in {"list": "[1]", "broken": "a: [", "empty": "", "binary": "\x00\x01"}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        assert f"{name}.yaml" in run_error(["train", str(path)], 2, capsys)
    assert "nowhere.yaml" in run_error(["train", str(tmp_path / "nowhere.yaml")], 2, capsys)


def test_a_trace_that_cannot_be_written_is_named(tiny_run, scene, tmp_path, capsys):
    assert run(["ask", str(tiny_run), str(scene), "what?", "--trace", str(scene / "no" / "trace.png")]) == 1
    error = capsys.readouterr().err
    assert "trace.png" in error and "Traceback" not in error


def test_an_evaluation_that_cannot_be_meant_writes_nothing(tiny_run, tmp_path, capsys):
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for override in ("eval.arms=[shuffled]", "eval.arms=[]", "eval.arms=[seeing]", "eval.split=tst", "train.steps=9"):
        run_error(["eval", str(copy), override], 2, capsys)
    assert not (copy / "eval").exists()


def test_what_is_wrong_with_a_question_or_its_trace_is_told_before_it_is_asked(tiny_run, scene, tmp_path, capsys):
    assert run(["ask", str(tiny_run), str(scene), " "]) == 2
    assert "is empty" in capsys.readouterr().err
    (tmp_path / "folder.png").mkdir()
    places = {
        str(tmp_path / "trace.xyz"): "has no suffix of a picture",
        "https://a.example/t.png": "https://a.example/t.png is a web address and cannot be written",
        str(scene / "no" / "trace.png"): "cannot be written .* is no folder",
        str(tmp_path / "folder.png"): "cannot be written .it is a folder",
        str(tmp_path / f"{'n' * 300}.png"): "cannot be written",
    }
    for place, words in places.items():
        assert run(["ask", str(tiny_run), str(scene), "what?", "--trace", place]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and re.search(words, shown.err), place


def test_wrong_options_point_to_the_help_of_their_command(capsys):
    assert run(["chat", "runs/mine", "--seed", "x"]) == 2
    assert capsys.readouterr().err.endswith(". See `vilavt chat --help`.\n")
