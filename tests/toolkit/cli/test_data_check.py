"""`vilavt data check` names all that is wrong with a file, and training starts on no file that it refuses."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import re
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vilavt_components.tasks.files.conversations import Conversations, ConversationsConfig
from vilavt_toolkit.cli.app import run
from vilavt_toolkit.config.schema import EvalSection
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.evaluation.arms import evaluate_arms

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TWO = [{"from": "human", "value": "<image><image>\nWhat?"}, TURNS[1]]
GOOD = {"id": "good", "images": ["a.png"], "conversations": TURNS}

BAD = {
    "a missing image": ({"images": ["gone.png"]}, r"images\[0\]: .*gone\.png does not exist. Check the path"),
    "an unreadable image": ({"images": ["text.png"]}, r"images\[0\]: .*text\.png is not an image in a known format"),
    "an empty image": ({"images": ["empty.png"]}, r"images\[0\]: .*empty\.png is empty \(0 bytes\). Get the file"),
    "more tags than images": ({"conversations": TWO}, "images: there are more <image> tags than images: 2 .* 1 named"),
    "fewer tags than images": ({"images": ["a.png", "a.png"]}, "images: there are fewer <image> tags than images: 1 "),
    "a tag without any image": ({"images": None}, "conversations: there are more <image> tags than images: 1 "),
    "a mapping that is not contiguous": (
        {"images": ["a.png"] * 3, "conversations": [{"from": "human", "value": "<image>" * 3}, TURNS[1]],
         "queries": ["x", "y"], "image_to_query_mapping": [0, 1, 0]},
        r"image_to_query_mapping\[2\]: is 0 again after another: not contiguous",
    ),
    "a short mapping": (
        {"images": ["a.png"] * 2, "conversations": TWO, "queries": ["x"], "image_to_query_mapping": [0]},
        "image_to_query_mapping: is too short: its length is 1, and the number of images is 2. Give one number",
    ),
    "a mapping to no query": (
        {"queries": ["x"], "image_to_query_mapping": [1]},
        r"image_to_query_mapping\[0\]: is 1, and the number of queries is 1. Add the query",
    ),
    "a query of no image": ({"queries": ["x", "y"], "image_to_query_mapping": [0]}, r"queries\[1\]: is no image's"),
    "an empty conversation": ({"conversations": []}, "conversations: is empty. It must be a list of messages"),
    "an unknown role": (
        {"conversations": [{"from": "robot", "value": "x"}, TURNS[1]]},
        r"conversations\[0\]\.from: is the unknown role 'robot' \(str\). It must be one of system, human",
    ),
    "roles that do not take turns": (
        {"conversations": [*TURNS, TURNS[1]]}, r"conversations\[2\]: is of role gpt \(assistant\) where human"),
    "no reply": ({"conversations": TURNS[:1]}, r"conversations\[0\]: is the last, and not the model's"),
    "a duplicate id": ({"id": "good"}, "id: 'good' is that of line 1 too. Give each its own"),
    "text that is a number": ({"conversations": [TURNS[0], {"from": "gpt", "value": 4}]}, r"\[1\]\.value: is 4 \(int"),
    "an empty answer": (
        {"conversations": [TURNS[0], {"from": "gpt", "value": "<answer> </answer>"}]}, "has an empty <answer>"),
    "nothing to learn": ({"mask_history": 9}, "mask_history: is 9, and conversations has 2 messages: nothing would"),
    "a budget of no number": ({"max_pixels": 10**400}, r"max_pixels: is 1000.* It must be a whole number from 1"),
    "a budget that is none": ({"max_pixels": -1}, r"max_pixels: is -1 \(int\). It must be a whole number from 1"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    return tmp_path


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def refused(capsys, *arguments: str) -> tuple[list[str], str]:
    """What a check that fails prints: problems, and the sentence at its end."""
    assert run(["data", "check", *arguments]) == 1
    said = capsys.readouterr()
    return [line for line in said.out.splitlines() if ": " in line and ", line " in line], said.err.strip()


def passes(capsys, *arguments: str) -> str:
    code = run(["data", "check", *arguments])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    return said.out


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_line_and_field_and_training_refuses_it_too(folder, capsys, name):
    changed, words = BAD[name]
    path = lines(folder, GOOD, "", {**GOOD, "id": "bad", **changed})
    problems, end = refused(capsys, str(path))
    assert len(problems) == 1 and re.search(f"^{re.escape(str(path))}, line 3, .*{words}", problems[0]), problems
    assert "1 problem in 2 samples. Training does not start on this file: correct or remove" in end
    with pytest.raises(InputError) as caught:
        Conversations(ConversationsConfig(files=str(path))).length("train")
    assert problems[0] in str(caught.value) and "have one problem" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{no json", r"line 2: is no valid JSON \(.*column 2\). Correct or remove the row"),
        ("[1]", r"line 2: is \[1\] \(list\). It must be a JSON object"),
        ('{"conversations": ' + "[" * 100_000, "line 2: is (nested too deep|no valid JSON)"),
        ('{"id": {"a": 1, "b": 2, "a": 1}}', "line 2: has the key 'a' twice in one object. Keep one of both"),
        ('{"id": "a"}\r{"id": "b"}', "line 2: ends with a carriage return alone.* Save the file with line feeds"),
        ('{"id": ' + "9" * 5000 + "}", "line 2: id is a number of 5,000 digits. Write it as text, or remove"),
        (json.dumps({**GOOD, "id": 1}).replace("A cat", "\\ud800"), "half a surrogate pair at character 0. Remove"),
    ],
)
def test_a_line_that_is_no_sample_does_not_hide_the_others(folder, capsys, line, words):
    path = lines(folder, GOOD, line, {**GOOD, "images": []})
    problems, _ = refused(capsys, str(path))
    assert re.search(words, problems[0]) and "line 3" in problems[-1]


def test_training_lists_the_first_twenty_problems_and_counts_the_rest(folder):
    path = lines(folder, *({**GOOD, "id": number, "images": ["gone.png"]} for number in range(25)))
    with pytest.raises(InputError) as caught:
        Conversations(ConversationsConfig(files=str(path))).length("train")
    told = str(caught.value).splitlines()
    assert "have 25 problems" in told[0] and len(told) == 22 and told[-1].strip() == "and 5 more"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no samples. Give another file"),
        (b'[{"conversations": [}]', "line 1: no valid JSON .* Correct that line"),
        (b'{\n "a": 1\n}', "is one JSON object over many lines. Write a list of samples"),
        (
            b'{"name": 1}\n',
            "has the fields name where its samples should begin, and no task here reads those.",
        ),
        (b"\xe9\n", r"data.json, line 1: is no UTF-8 text \(byte 0\). Convert the file to UTF-8"),
        (b'{"conversations": [}\n', r"data.json, line 1: is no valid JSON .*. Correct or remove the row"),
        (b"\x89PNG\0\0", "is no text file. Give a JSON list, JSON lines, a table"),
        ("[1]".encode("utf-16"), "is UTF-16 text. Convert it to UTF-8"),
        (b'[{"a": "}"},\n\n{"a":\n1, "a": 2}]', "data.json: the item that begins on line 3 has the key 'a' twice"),
        (b'[{"a": [{"b": ' + b"9" * 5000 + b"}]}]", r"data.json: \[0\].a\[0\].b is a number of 5,000 digits. Write it"),
        (b"[" * 100_000, "(is nested too deep|no valid JSON)"),
    ],
)
def test_a_file_that_is_no_data_file_is_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    assert run(["data", "check", str(path)]) == 1
    said = capsys.readouterr()
    assert re.search(words, said.err) and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.tar", "data.csv.gz"])
def test_a_compressed_file_is_told_whatever_it_is_called(tmp_path, capsys, pack, name):
    (tmp_path / name).write_bytes(pack(json.dumps(GOOD).encode()))
    assert run(["data", "check", str(tmp_path / name)]) == 1
    assert re.search(r"is compressed \(\w+\), so rows .* Unpack it\.$", capsys.readouterr().err.strip())


def test_what_is_no_regular_file_is_refused_and_not_waited_for(folder, capsys):
    os.mkfifo(folder / "pipe.jsonl")
    for name in ("pipe.jsonl", "/dev/zero", "/dev/null"):
        assert run(["data", "check", str(folder / name)]) == 1
        assert "is no regular file, and rows are read more than once. Give" in capsys.readouterr().err
    assert run(["data", "check", str(folder)]) == 1
    assert "is a folder, and no data set that the library datasets saved. Give" in capsys.readouterr().err
    assert run(["data", "check", "a\0b"]) == 1
    for name in ("pipe.jsonl", "/dev/zero"):
        problems, _ = refused(capsys, str(lines(folder, {**GOOD, "images": [name]})))
        assert "Get the file again" in problems[0]


def test_a_line_that_is_too_long_is_one_problem_and_the_next_one_is_read(folder, capsys, monkeypatch):
    monkeypatch.setattr("vilavt_toolkit.data.rows.MOST_ROW_BYTES", 500)
    for length in (10_000, 501 - 13, 1002 - 13):
        path = lines(folder, GOOD, json.dumps({"long": "x" * length}), {**GOOD, "id": 2, "images": []})
        problems, _ = refused(capsys, str(path))
        assert "line 2: is longer than 500 bytes. Put its pictures into files" in problems[0]
        assert len(problems) == 2 and "line 3, conversations: there are more" in problems[1]


def test_a_good_file_is_counted_and_drawn(folder, capsys):
    text = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
    said = passes(capsys, str(lines(folder, GOOD, {**text, "id": 2})))
    assert "format conversations: 2 samples, 2 of them right, with 1 image, 0 videos, 1 of text alone" in said
    assert "words a sample: least 2" in said and "patches of 28 x 28 pixels a sample" in said and "█" in said


def test_images_are_found_below_the_root(folder, capsys, tmp_path_factory):
    elsewhere = lines(tmp_path_factory.mktemp("other"), GOOD)
    assert refused(capsys, str(elsewhere))[0]
    passes(capsys, str(elsewhere), "--root", str(folder))


def test_every_pixel_is_looked_at_when_asked_for(folder, capsys):
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    (folder / "a.png").write_bytes(whole.read_bytes()[:2000])
    path = lines(folder, GOOD)
    passes(capsys, str(path))
    problems, _ = refused(capsys, str(path), "--open")
    assert "a.png is damaged or cut off" in problems[0] and "Get the image again" in problems[0]


@pytest.mark.parametrize("name", [{"file": "a.png"}, None, ""])
def test_a_path_that_is_none_is_complained_of_once(folder, capsys, name):
    problems, _ = refused(capsys, str(lines(folder, {**GOOD, "images": [name]})))
    assert len(problems) == 1 and "line 1, images[0]: is " in problems[0]


def test_a_sample_s_own_budget_that_holds_no_token_is_named(folder, capsys, tiny_recipe):
    path = lines(folder, GOOD, {**GOOD, "id": 2, "max_pixels": 1})
    assert run(["data", "check", str(path), "--recipe", str(tiny_recipe)]) == 1
    assert re.search(
        r"data\.jsonl, line 2: .*the sample's max_pixels of 1 is less than one token", capsys.readouterr().out
    )


def test_other_formats_are_told_by_their_fields(folder, capsys):
    rl = {"question": "Red?", "answer": "No", "image_path": ["a.png"], "question_type": "judgment"}
    bench = {"question_id": 1, "question": "Red?", "answer": "No", "problem_type": "judgment", "images": ["a.png"]}
    assert "format vilavt_rl: 1 sample" in passes(capsys, str(lines(folder, rl)))
    assert "format vilavt_benchmark: 1 sample" in passes(capsys, str(lines(folder, bench)))


def test_a_recipe_counts_its_own_tokens_and_refuses_what_its_context_does_not_hold(folder, capsys, tiny_recipe):
    recipe, path = str(tiny_recipe), lines(folder, GOOD)
    said = passes(capsys, str(path), "--recipe", recipe)
    assert "tokens a sample, by tiny (context 384)" in said and "patches a sample, by the encoder of tiny" in said
    assert "longer than the context: 0 of 1 sample, made smaller by the pixel budget: 1 image" in said
    long = {**GOOD, "id": "long", "conversations": [TURNS[0], {"from": "gpt", "value": "cat zebra quux " * 300}]}
    path = lines(folder, GOOD, long)
    assert run(["data", "check", str(path), "--recipe", recipe]) == 1
    shown = capsys.readouterr()
    assert re.search(
        r"data\.jsonl, line 2: [\d,]+ tokens, [\d,]+ of them features, are more than the context of 384\. Shorten",
        shown.out,
    )
    assert "1 problem in 2 samples" in shown.err


def test_training_stops_before_anything_is_built(folder, capsys, tiny_recipe, tmp_path):
    path = lines(folder, GOOD, {**GOOD, "id": 2, "images": []})
    changed = ["task.name=conversations", f"task.files={path}", f"run={tmp_path / 'run'}"]
    text = tiny_recipe.read_text()
    tiny_recipe.write_text(
        text[: text.index("task:")] + "task: {name: conversations, files: x}\n" + text[text.index("train:") :]
    )
    assert run(["train", str(tiny_recipe), *changed]) == 1
    assert "line 2, conversations: there are more <image> tags" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_conversation_is_trained_on(folder, capsys, tiny_recipe, tmp_path):
    path = lines(folder, *({**GOOD, "id": number} for number in range(4)))
    text = tiny_recipe.read_text()
    tiny_recipe.write_text(
        text[: text.index("task:")] + f"task: {{name: conversations, files: {path}}}\n" + text[text.index("train:") :]
    )
    assert run(["train", str(tiny_recipe), "train.steps=2", "train.batch_size=2", f"run={tmp_path / 'run'}"]) == 0
    assert list((tmp_path / "run" / "checkpoints").iterdir())


# --- What is told of a right file -------------------------------------------------------------------


def recipe_for(recipe: Path, task: str) -> str:
    """The tiny recipe with another task."""
    text = recipe.read_text()
    recipe.write_text(text[: text.index("task:")] + f"task: {task}\n" + text[text.index("train:") :])
    return str(recipe)


def test_plain_replies_are_told_and_shown_as_the_model_will_see_them(folder, capsys, tiny_recipe):
    path = lines(folder, GOOD)
    assert "plain replies in 1 of 1 sample: they have no <answer>" in (said := passes(capsys, str(path)))
    assert "the first sample as it is read" in said and "user: [a.png]\nWhat?\nmodel: A cat.\n" in said
    recipe = recipe_for(tiny_recipe, f"{{name: conversations, files: {path}, replies: answer}}")
    said = passes(capsys, str(path), "--recipe", recipe)
    assert "plain replies" not in said
    assert re.search(r"\[a\.png: \d+ features\]\[0\]\n  What\?\n  Answer now\.", said)
    assert "\n> <think></think><answer>A cat.</answer><|end|>\n" in said


def test_names_of_framing_tokens_in_a_file_are_told(folder, capsys, tiny_recipe, caplog):
    ended = [TURNS[0], {"from": "gpt", "value": "<answer>A cat.<|end|></answer>"}]
    path = lines(folder, {**GOOD, "conversations": ended}, {**GOOD, "id": 2})
    recipe = recipe_for(tiny_recipe, f"{{name: conversations, files: {path}}}")
    said = passes(capsys, str(path), "--recipe", recipe)
    assert "names of tokens that frame turns, such as <|im_end|>, in 1 sample: they are read as plain text" in said
    assert run(["train", recipe, "train.steps=1", "train.batch_size=2", f"run={folder / 'run'}"]) == 0
    assert "1 of 2 samples hold names of tokens that frame turns" in caplog.text


def test_fields_that_nothing_reads_are_named_and_misspelt_ones_refused(folder, capsys):
    said = passes(capsys, str(lines(folder, {**GOOD, "source": "x"}, {**GOOD, "id": 2, "source": "x", "split": 1})))
    assert "fields that task conversations does not read: source, split" in said
    for wrong, right in (("querys", "queries"), ("mask_histroy", "mask_history"), ("point_clod", "point_cloud")):
        problems, _ = refused(capsys, str(lines(folder, {**GOOD, wrong: 1})))
        assert f"line 1, {wrong}: is no field of this format. Did you mean '{right}'? Rename it." in problems[0]


def test_no_terminal_obeys_what_a_file_holds_and_no_error_prints_much_of_it(folder, capsys):
    evil, long = "\x1b[2J\x9b\r", "x" * 100_000
    said = passes(capsys, str(lines(folder, {**GOOD, "id": evil, "conversations": [
        {"from": "human", "value": f"<image>{evil}"}, TURNS[1]]})))  # fmt: skip
    assert r"\x1b[2J\x9b\r" in said and evil[0] not in said and evil[4] not in said
    rows = [
        {**GOOD, "id": long}, {**GOOD, "id": long}, {**GOOD, "id": evil, long: 1, "images": [evil]},
        {**GOOD, "images": [long]}, {**GOOD, "conversations": long}, {**GOOD, "images": [f"http://{long}"]},
        {**GOOD, "id": {long: long}}, {**GOOD, "mask_history": long}, {**GOOD, "images": [f"{long[:4000]}.png"]},
    ]  # fmt: skip
    assert run(["data", "check", str(lines(folder, *rows))]) == 1
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert max(map(len, (shown.out + shown.err).splitlines())) < 700


# --- Inputs that failed once ------------------------------------------------------------------------


def choice(folder: Path, options: Any, answer: str) -> Path:
    row = {"question": "<image>q", "answer": answer, "question_type": "multiple choice", "image_path": "a.png"}
    return lines(folder, {**row, "options": options})


def orient_by_text(folder: Path) -> Path:
    """A picture whose EXIF data give its orientation as text."""
    entry = struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, 2, 2, b"6\0\0\0", 0)
    Image.new("RGB", (40, 30)).save(folder / "turned.jpg", exif=b"Exif\0\0" + entry)
    return lines(folder, {**GOOD, "images": ["turned.jpg"]})


def pack(folder: Path, *keys: str) -> bytes:
    """A tar file of one sample for each key, whose row names no image."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for key in keys:
            for suffix, content in (("json", json.dumps({"conversations": TURNS}).encode()),
                                    ("png", (folder / "a.png").read_bytes())):  # fmt: skip
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def write_tar(folder: Path, *archives: bytes) -> Path:
    (folder / "data.tar").write_bytes(b"".join(archives))
    return folder / "data.tar"


def data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


RIGHT = {
    "a picture in the row": (
        lambda folder: lines(folder, {**GOOD, "images": [data_uri((folder / "a.png").read_bytes())]}),
        r"user: \[images\[0\]\]\nWhat\?",
    ),
    "letters that do not begin at A": (
        lambda folder: choice(folder, {"B": "bee", "C": "cee", "D": "dee"}, "D"),
        r"q\nB\. bee\nC\. cee\nD\. dee\nanswer: D",
    ),
    "an orientation that is text": (orient_by_text, r"patches of 28 x 28 .*: least 4, median 4, most 4"),
    "two samples of one key": (lambda folder: write_tar(folder, pack(folder, "0", "0")), "2 samples, 2 of them right"),
    "shards one after another": (
        lambda folder: write_tar(folder, pack(folder, "0"), pack(folder, "0")),
        "2 samples, 2 of them right",
    ),
    "rows of one image": (
        lambda folder: lines(folder, GOOD, {**GOOD, "id": 2}),
        "all samples show the same first image, so task.val_share can hold none of them out",
    ),
}
WRONG = {
    "no picture in the row": (
        lambda folder: lines(folder, {**GOOD, "images": [data_uri(b"\x89PNG\r\n\x1a\n" * 99_999)]}),
        r"line 1, images\[0\]: the file in the row is damaged or cut off: it begins as PNG",
    ),
    "more options than letters": (
        lambda folder: choice(folder, [str(number) for number in range(30)], "A"),
        "line 1, options: has 30 options. Each needs a letter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_inputs_that_failed_once_are_read(folder, capsys, name):
    pytest.importorskip("webdataset")
    write, words = RIGHT[name]
    assert re.search(words, passes(capsys, str(write(folder))))


@pytest.mark.parametrize("name", WRONG)
def test_inputs_that_failed_once_are_refused_in_a_sentence(folder, capsys, name):
    write, words = WRONG[name]
    problems, _ = refused(capsys, str(write(folder)))
    assert len(problems) == 1 and re.search(words, problems[0]) and len(problems[0]) < 500


# --- A recipe's source ------------------------------------------------------------------------------


def test_what_the_recipes_source_cannot_open_is_told_before_anything_is_built(folder, capsys, tiny_recipe):
    (folder / "clip.mp4").write_bytes(b"x")
    (folder / "room.ply").write_bytes(b"ply")
    question = {"question": "what?", "answer": "x"}
    path = lines(folder, {**question, "image": "a.png"}, {**question, "point_cloud": "room.ply"})
    recipe = recipe_for(tiny_recipe, f"{{name: questions, files: {path}, test_files: {path}}}")
    words = "line 2, point_cloud is a point cloud, and model.source 'image' opens none. Set model.source=point_cloud."
    for command in (["check", recipe], ["train", recipe], ["data", "check", str(path), "--recipe", recipe]):
        assert run(command) != 0
        assert words in capsys.readouterr().err
    lines(folder, {**question, "video": "clip.mp4"})
    assert run(["check", recipe, "task.videos=true"]) == 2
    told = "task.videos is true, and model.source 'image' opens no videos. Set model.source=video, or task.videos=false"
    assert told in capsys.readouterr().err
    lines(folder, {**question, "image": "a.png"})
    assert run(["check", recipe]) == 0
    assert run(["check", recipe, "task.videos=true", "model.source=video"]) == 0


def test_a_share_that_can_hold_nothing_out_is_told_before_training_and_evaluation(
    folder, capsys, tiny_recipe, tiny_run, tmp_path
):
    """All samples show one image, which no two splits may share."""
    path = lines(folder, *({**GOOD, "id": number} for number in range(3)))
    assert "all samples show the same first image" in passes(capsys, str(path)).replace("\n", " ")
    task = f"{{name: conversations, files: {path}, val_share: 0.2}}"
    recipe, split = recipe_for(tiny_recipe, task), "eval.split=val"
    commands = {
        "check": ["check", recipe, split],
        "data check": ["data", "check", str(path), "--recipe", recipe],
        "train": ["train", recipe, split, f"run={tmp_path / 'run'}"],
        "eval": ["eval", str(tiny_run), split, "task.name=conversations", f"task.files={path}", "task.val_share=0.2"],
    }
    for name, command in commands.items():
        capsys.readouterr()
        assert run(command) in (1, 2), name
        told = " ".join(capsys.readouterr().err.split())
        assert "leaves split 'val' empty: all 3 samples" in told and "task.val_files" in told, name
    assert not (tmp_path / "run").exists()


def test_an_empty_split_of_any_task_is_a_sentence(tiny_model, tiny_task, monkeypatch):
    section = EvalSection(split="val")
    monkeypatch.setattr(tiny_task, "length", lambda split: 0)
    with pytest.raises(UsageError, match="split 'val' of the task has no samples"):
        evaluate_arms(tiny_model, tiny_task, section, 0)
