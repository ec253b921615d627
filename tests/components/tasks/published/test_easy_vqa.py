"""easy-VQA is read as it lies on disk: splits by image, thoughts that are true, and what is damaged is named."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.tasks.published.easy_vqa import (
    SHAPES,
    EasyVQA,
    EasyVQAConfig,
    QuestionRow,
    describe_images,
    read_rows,
)
from vilavt_components.tasks.published.tiny_corpora import write_easy_vqa
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.evaluation.run import evaluate_run
from vilavt_toolkit.training.supervised.run import run_supervised

SPLITS = ("train", "val", "test")
ANSWERS = frozenset({"red", "blue", "teal", "yes", "no"}) | SHAPES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that no test changes; drawing one takes longer than copying it."""
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    write_easy_vqa(folder, images=18)
    return folder


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "corpus"))


def task_of(root: Path, **changed: Any) -> EasyVQA:
    return EasyVQA(EasyVQAConfig(root=str(root), **changed))


def samples_of(task: EasyVQA, split: str) -> list[Sample]:
    return [task.sample(split, index) for index in range(task.length(split))]


def set_rows(root: Path, rows: Any, split: str = "train") -> Path:
    file = root / split / "questions.json"
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return file


def rows_of(root: Path, split: str = "train") -> list[Any]:
    found: list[Any] = json.loads((root / split / "questions.json").read_text())
    return found


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("val", [0.05, 0.3, 0.5])
def test_every_published_row_is_in_one_split_and_no_image_in_two(root: Path, seed: int, val: float) -> None:
    task = task_of(root, seed=seed, val=val)
    found = {split: samples_of(task, split) for split in SPLITS}
    asked = [(s.question, s.answer, int(s.tags["group"].split("/")[1])) for s in found["train"] + found["val"]]
    assert Counter(asked) == Counter(tuple(row) for row in rows_of(root))
    assert len(found["test"]) == len(rows_of(root, "test"))
    images = {split: {sample.tags["group"] for sample in those} for split, those in found.items()}
    assert not images["train"] & images["val"] and not images["test"] & (images["train"] | images["val"])
    assert len(images["val"]) == max(1, round(val * 18))
    assert len({sample.id for those in found.values() for sample in those}) == 2 * 18 * 4


def test_the_seed_decides_what_is_held_out_and_in_what_order(root: Path) -> None:
    ids = [[s.id for s in samples_of(task_of(root, seed=seed, val=0.3), "val")] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] and sorted(ids[0]) != sorted(ids[2])
    train = [s.tags["group"] for s in samples_of(task_of(root), "train")]
    assert train != sorted(train), "the first samples are not those of one image"


def test_a_sample_shows_the_image_it_asks_about(root: Path) -> None:
    task = task_of(root, val=0.3)
    for split in SPLITS:
        for sample in samples_of(task, split):
            folder, number = sample.tags["group"].split("/")
            pixels = ImageSource.open(sample.originals[0], ImageConfig()).pixels
            right = ImageSource.open(root / folder / "images" / f"{number}.png", ImageConfig()).pixels
            assert np.array_equal(pixels, right) and pixels.shape == (64, 64, 3)
            assert [sample.question, sample.answer, int(number)] in rows_of(root, folder)
            assert not sample.tool


def test_thoughts_name_the_shape_that_is_drawn(root: Path) -> None:
    strongest = {"red": {0}, "blue": {2}, "teal": {1, 2}}
    for sample in samples_of(task_of(root), "train"):
        ((turn),) = sample.trace
        _, colour, shape = turn.thought.split()
        assert turn.answer == sample.answer and turn.answer in (colour, shape, "yes", "no")
        middle = ImageSource.open(sample.originals[0], ImageConfig()).pixels[26, 24]
        assert set(np.flatnonzero(middle > 100)) == strongest[colour]
        assert shape == ("circle", "rectangle", "triangle")[int(sample.tags["group"].split("/")[1]) % 3]


def test_only_training_samples_have_thoughts_and_they_can_be_left_empty(root: Path) -> None:
    task = task_of(root, val=0.3)
    assert all(not sample.trace for split in ("val", "test") for sample in samples_of(task, split))
    plain = samples_of(task_of(root, thoughts=False), "train")
    assert all(sample.trace[0].thought == "" and sample.trace[0].answer == sample.answer for sample in plain)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("what color is the circle?", "red")], "a red circle"),
        ([("what is the blue shape?", "rectangle")], "a blue rectangle"),
        ([("what shape is present?", "circle")], "a circle"),
        ([("is there a red shape?", "yes")], "a red shape"),
        ([("is there not a red shape in the image?", "no")], "a red shape"),
        ([("is no red shape present?", "no"), ("Is a Circle present?", "yes")], "a red circle"),
        ([("does the image not contain a red shape?", "yes")], "a shape"),
        ([("is there a red shape?", "no"), ("is no circle present?", "yes")], "a shape"),
        ([("is there a triangle?", "no"), ("is no circle present?", "yes")], "a rectangle"),
        ([("what shape is present?", "circle"), ("what shape is present?", "triangle")], "a shape"),
    ],
)
def test_what_is_said_of_an_image_follows_from_its_questions(rows: list[tuple[str, str]], said: str) -> None:
    others = [("what is the color of the shape?", colour) for colour in ("red", "blue", "green")]
    about = [QuestionRow(0, question, answer, 5) for question, answer in rows]
    elsewhere = [QuestionRow(0, question, answer, image) for image, (question, answer) in enumerate(others)]
    assert describe_images([*about, *elsewhere])[5] == said


def test_some_training_samples_are_blind_where_the_recipe_says_so(root: Path) -> None:
    task = task_of(root, blind=0.4, val=0.1, tool=True)
    blind = [sample for sample in samples_of(task, "train") if not sample.originals]
    assert 0.15 < len(blind) / task.length("train") < 0.65
    assert all(s.trace[0].thought == "no image" and not s.tool for s in blind)
    assert all(sample.originals and sample.tool for split in ("val", "test") for sample in samples_of(task, split))


def test_the_corpus_holds_every_word_of_training_and_none_of_what_is_held_out(root: Path) -> None:
    task = task_of(root, val=0.5)
    known = set(task.corpus())
    for sample in samples_of(task, "train"):
        assert {sample.question, sample.answer, sample.trace[0].thought} <= known
    rows = rows_of(root)
    marked = [[f"{question} {image}", answer, image] for question, answer, image in rows]
    set_rows(root, marked)
    task = task_of(root, val=0.5)
    assert not {sample.question for sample in samples_of(task, "val")} & set(task.corpus())


def test_scores_ignore_case_and_outer_spaces_only(root: Path) -> None:
    task = task_of(root)
    sample = next(s for s in samples_of(task, "test") if s.answer == "circle")
    assert task.score(sample, " Circle\n") == 1
    for wrong in (None, "", "a circle", "circle."):
        assert task.score(sample, wrong) == 0
    assert task.metrics([sample], [1.0]) == {}


def test_it_is_trained_on_and_evaluated_by_image(root: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    changed = ["task.name=easy_vqa", f"task.root={root}", "train.steps=2", f"run={tmp_path / 'run'}"]
    run = run_supervised(load_recipe(tiny_recipe, [*changed, "eval.arms=[blind,single_pass]", "eval.max_new_tokens=4"]))
    summary = evaluate_run(run, [], Console(file=open(os.devnull, "w")))  # noqa: SIM115
    everything = summary["arms"]["single_pass"]["accuracy"]["all"]
    assert (everything["items"], everything["clusters"]) == (72, 18)
    assert summary["arms"]["single_pass"]["metrics"] == {}


# --- What is damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["is there a circle?", "yes"], "it has no image number"),
        (["is there a circle?", 0], "it has no answer"),
        (["is there a circle?", None, 0], "it has no answer"),
        (["is there a circle?", "", 0], "it has no answer"),
        (["is there a circle?", "purple", 0], "'purple' is none of answers.txt"),
        (["  ", "yes", 0], "its question is empty"),
        ([7, "yes", 0], "its question is empty or no text"),
        (["is there a circle?", "yes", "0"], "image number '0' is no whole number"),
        (["is there a circle?", "yes", True], "image number 'True'"),
        (["is there a circle?", "yes", -1], "image number '-1'"),
        (["is there a circle?", "yes", 99], "99.png does not exist"),
        ({"question": "is there a circle?"}, "it is no [question, answer, image number]"),
        ("is there a circle?", "it is no [question, answer, image number]"),
    ],
)
def test_a_corrupt_row_is_named_with_its_file_and_place(root: Path, row: Any, words: str) -> None:
    rows = rows_of(root)
    rows[5] = row
    file = set_rows(root, rows)
    with pytest.raises(InputError) as caught:
        task_of(root).length("test")
    said = str(caught.value)
    assert said.startswith(f"{file}, row 5 (counted from 0): ") and words in said and "\n" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[["is there a circle?", "yes", 0],\n["cut', "line 2: no valid JSON"),
        ("", "line 1: no valid JSON"),
        ("[]", "holds no list of questions"),
        ('{"questions": []}', "holds no list of questions"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_named(root: Path, text: str, words: str) -> None:
    file = set_rows(root, text)
    with pytest.raises(InputError, match=words) as caught:
        task_of(root).sample("train", 0)
    assert str(file) in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["yes", "red"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(JSON | st.tuples(st.text(max_size=9), st.sampled_from(sorted(ANSWERS)), st.integers(0, 2)), max_size=4))
def test_whatever_the_rows_are_they_are_read_or_named(tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "images").mkdir(exist_ok=True)
    for image in range(2):
        (tmp_path / "images" / f"{image}.png").touch()
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    try:
        read = read_rows(tmp_path, ANSWERS)
    except InputError as error:
        assert str(tmp_path) in str(error)
    else:
        assert len(read) == len(rows) and all(row.question and row.answer in ANSWERS for row in read)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere. Set task.root"):
        task_of(tmp_path / "nowhere").length("train")
    (root / "answers.txt").rename(root / "other.txt")
    with pytest.raises(InputError, match=r"answers.txt does not exist. Set task.root"):
        task_of(root).length("train")
    (root / "answers.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 text"):
        task_of(root).length("train")


def test_an_image_that_cannot_be_read_is_named_when_it_is_opened(root: Path) -> None:
    task = task_of(root)
    sample = task.sample("test", 0)
    Path(sample.originals[0]).write_bytes(b"no image")
    with pytest.raises(InputError, match=Path(sample.originals[0]).name):
        ImageSource.open(sample.originals[0], ImageConfig())


def test_unknown_splits_and_indices_are_refused(root: Path) -> None:
    task = task_of(root, val=0)
    with pytest.raises(UsageError, match=r"no split 'dev'\. Choose one of train, val, test"):
        task.sample("dev", 0)
    with pytest.raises(UsageError, match=r"'val' of 'easy_vqa' is empty, since task.val is 0"):
        task.length("val")
    for index in (-1, 72):
        with pytest.raises(IndexError, match="72 samples"):
            task.sample("test", index)


# --- The corpus itself ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> EasyVQA:
    if not os.environ.get("VILAVT_DATA"):
        pytest.skip("VILAVT_DATA is not set: the published corpora are not there")
    return EasyVQA(EasyVQAConfig(root=str(Path(os.environ["VILAVT_DATA"]) / "easy_vqa")))


def test_the_published_corpus_is_read_whole(published: EasyVQA) -> None:
    assert published.length("train") + published.length("val") == 38_575
    assert published.length("test") == 9_673
    assert len({sample.answer for sample in samples_of(published, "test")}) == 13


def test_thoughts_on_the_published_images_are_full_and_agree_with_the_answers(published: EasyVQA) -> None:
    samples = samples_of(published, "train")
    thoughts = [sample.trace[0].thought.split() for sample in samples]
    assert sum(len(words) == 3 and "shape" not in words for words in thoughts) > 0.9 * len(samples)
    for sample, words in zip(samples, thoughts, strict=True):
        assert sample.answer in (*words, "yes", "no")
        negated = bool({"not", "no"} & set(sample.question.rstrip("?").split()))
        for word in set(sample.question.rstrip("?").split()) & set(words) - {"a", "shape"}:
            assert sample.tags["kind"] != "presence" or (sample.answer == "yes") != negated, (sample, word)
