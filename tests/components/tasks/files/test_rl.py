"""Questions for reinforcement: compared by their type, within their own limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.tasks.files.rl import VilavtRL, VilavtRLConfig
from vilavt_toolkit.dialogue.session import session_for
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.loop import Decoding, Loop


def task_of(folder: Path, official: bool = False, **changed: Any) -> VilavtRL:
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    row = {
        "question": "Is it red?",
        "answer": "Yes",
        "image_path": ["a.png"],
        "question_type": "judgment",
        "data_type": "image",
        "max_pixels": 256,
        "max_num_steps": 2,
    }
    (folder / "rl.jsonl").write_text(json.dumps({**row, **changed}) + "\n")
    settings = {"test_files": str(folder / "rl.jsonl"), "scoring": "official"} if official else {}
    return VilavtRL(VilavtRLConfig(files=str(folder / "rl.jsonl"), **settings))


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "score"),
    [
        ("judgment", "Yes", "true", 1),
        ("judgment", True, "yes", 1),
        ("multiple choice", "B", "(b)", 1),
        ("Multiple Choice ", "B", "A", 0),
        ("math", "\\frac{1}{2}", "0.5", 1),
        ("numerical", 4, "3", 0.6),
        ("regression", "4", "4.0", 1),
    ],
)
def test_the_question_type_says_how_answers_are_compared(tmp_path, kind, truth, answer, score):
    task = task_of(tmp_path, question_type=kind, answer=truth)
    sample = task.sample("train", 0)
    assert task.score(sample, answer) == pytest.approx(score)
    assert sample.originals == (str(tmp_path / "a.png"),)


@pytest.mark.parametrize(
    ("kind", "truth", "text", "strict"),
    [
        ("multiple choice", "B", "B) the lamp", 0),
        ("multiple choice", "B", "B, because it is red", 0),
        ("judgment", "yes", "**yes**", 0),
        ("judgment", "yes", "</think> <answer>yes</answer> as I said", 0),
        ("regression", "4", "4.0", 1),
    ],
)
def test_an_evaluation_may_score_answers_by_the_papers_rule(tmp_path, kind, truth, text, strict):
    for official, expected in ((False, strict), (True, 1)):
        task = task_of(tmp_path, official, question_type=kind, answer=truth)
        sample = task.sample("test" if official else "train", 0)
        answer = None if "<" in text else text
        assert task.score_turn(sample, text, answer) == expected


def test_a_truth_that_only_the_papers_rule_reads_may_be_asked_and_not_learned(tmp_path):
    task = task_of(tmp_path, True, question_type="multiple choice", answer="B. chair")
    assert task.score(task.sample("test", 0), "b") == 1
    with pytest.raises(InputError, match=r"answer: is 'B\. chair'"):
        task.length("train")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"question_type": "riddle"}, "line 1, question_type: is 'riddle'. It must be one of multiple choice, math"),
        ({"question_type": None}, "line 1, question_type: is missing"),
        ({"answer": "maybe"}, "line 1, answer: is 'maybe' .* cannot be read as kind 'yes_no'"),
        ({"max_num_steps": 0}, r"line 1, max_num_steps: is 0 \(int\). It must be a whole number from 1"),
        ({"max_pixels": "many"}, r"line 1, max_pixels: is 'many' \(str\)"),
        (
            {"image_path": ["clip.mp4"]},
            r"line 1, image_path\[0\]: clip.mp4 is a video. Set task.videos=true and a model.source",
        ),
        ({"image_path": ["https://x.org/a.png"]}, "is a web address. Download it"),
    ],
)
def test_a_bad_question_is_named_with_its_line_and_field(tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        task_of(tmp_path, **changed).length("train")


def test_a_sample_may_take_no_more_turns_than_it_says(tmp_path, tiny_model):
    sample = task_of(tmp_path).sample("train", 0)
    lengths = []
    for most in (1, 2, None):
        session = session_for(tiny_model, replace(sample, max_turns=most))
        session.ask(sample.question)
        Loop(tiny_model, Decoding(max_new_tokens=4)).run([session])
        lengths.append((len(session.trajectory.turns), session.trajectory.why))
    # A random model never answers: the demanded turn comes last; the recipe itself allows three.
    assert lengths[0] == (2, "the turns of its sample (1) are used up")
    assert lengths[1] == (3, "the turns of its sample (2) are used up")
    assert lengths[2] == (4, "3 turns are used up")


def test_a_sample_may_have_smaller_views_than_the_encoder_allows(tmp_path, tiny_model):
    sample = task_of(tmp_path).sample("train", 0)
    views = []
    for most in (256, None):
        session = session_for(tiny_model, replace(sample, max_pixels=most))
        session.ask(sample.question)
        views.append(tiny_model.vision.backbone.extent(session.views[0]))
    assert views[0][0] * views[0][1] <= 256 < views[1][0] * views[1][1]


def test_a_row_in_a_shard_that_names_no_image_shows_those_beside_it(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    row = {"question": "<image>Is it red?", "answer": "Yes", "question_type": "judgment"}
    with webdataset.ShardWriter(f"{tmp_path}/part-%02d.tar", verbose=False) as writer:
        writer.write({"__key__": "0", "json": row, "0.png": (tmp_path / "a.png").read_bytes()})
    sample = VilavtRL(VilavtRLConfig(files=f"{tmp_path}/part-00.tar")).sample("train", 0)
    assert [ImageSource.open(each, ImageConfig()).extent for each in sample.originals] == [(0, 0, 64, 64)]
