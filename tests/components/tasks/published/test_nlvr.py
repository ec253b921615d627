"""NLVR is read as it lies on disk: nothing but picture and sentence reaches a model, and scoring is the published."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from vilavt_components.tasks.published.nlvr import NLVR, NLVRConfig, read_pairs
from vilavt_components.tasks.published.tiny_corpora import write_nlvr
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.evaluation.run import evaluate_run
from vilavt_toolkit.training.supervised.run import run_supervised

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that no test changes; drawing one takes longer than copying it."""
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    write_nlvr(folder, sentences=6)
    return folder


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "corpus"))


def task_of(root: Path, **changed: Any) -> NLVR:
    return NLVR(NLVRConfig(root=str(root), **changed))


def samples_of(task: NLVR, split: str) -> list[Sample]:
    return [task.sample(split, index) for index in range(task.length(split))]


def lines_of(root: Path, split: str = "train") -> list[str]:
    return (root / split / f"{split}.json").read_text().splitlines()


def set_lines(root: Path, lines: list[str], split: str = "train") -> Path:
    file = root / split / f"{split}.json"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def name_of(task: NLVR, sample: Sample) -> tuple[str, str, str, str]:
    """Published split, n, m and k of a sample's file."""
    found = re.fullmatch(r"(\w+)-(\d+)-(\d+)-(\d+)\.png", task.image_file(sample.id).name)
    assert found is not None
    return found[1], found[2], found[3], found[4]


@pytest.mark.parametrize(("val", "seed"), [(0.1, 0), (0.3, 3), (0.5, 0)])
def test_every_png_is_one_sample_and_no_sentence_group_is_in_two_splits(root: Path, seed: int, val: float) -> None:
    task = task_of(root, seed=seed, val=val)
    names = {split: [name_of(task, sample) for sample in samples_of(task, split)] for split in SPLITS}
    everything = [name for split in SPLITS for name in names[split]]
    assert len(everything) == len(set(everything)) == 2 * 6 * 4 * 6
    groups = {split: {(folder, n) for folder, n, _, _ in names[split]} for split in SPLITS}
    assert not groups["train"] & groups["val"] and len(groups["val"]) == max(1, round(6 * val))
    assert {folder for folder, _ in groups["test"]} == {"dev"}


def test_samples_show_their_own_picture_and_carry_the_label_of_their_row(root: Path) -> None:
    task = task_of(root, val=0.3)
    rows = {
        (split, row["identifier"]): row for split in ("train", "dev") for row in map(json.loads, lines_of(root, split))
    }
    for split in SPLITS:
        for sample in samples_of(task, split):
            folder, n, m, _ = name_of(task, sample)
            row = rows[folder, f"{n}-{m}"]
            assert (sample.question.split("\n")[0], sample.answer) == (row["sentence"], row["label"])
            with Image.open(task.image_file(sample.id)) as image:
                assert np.array_equal(sample.originals[0], np.asarray(image.convert("RGB")))


# --- Nothing leaks ----------------------------------------------------------------------------------


def test_neither_file_name_nor_identifier_nor_place_is_anywhere_in_a_sample(root: Path) -> None:
    task = task_of(root, val=0.3)
    for split in SPLITS:
        for sample in samples_of(task, split):
            file = task.image_file(sample.id)
            assert all(isinstance(original, np.ndarray) for original in sample.originals), "pixels, no paths"
            said = repr(replace(sample, originals=()))
            folder, n, m, k = name_of(task, sample)
            for told in (file.stem, f"{n}-{m}", str(root), f"{n}-{m}-{k}", f"{folder}-{n}"):
                assert told not in said
            assert re.fullmatch(r"nlvr/[0-9a-f]{16}", sample.id)


def test_the_model_reads_the_sentence_and_sees_the_picture_and_nothing_else(root: Path, tiny_model: Any) -> None:
    sample = task_of(root).sample("train", 0)
    session = build_trace_session(tiny_model, sample)
    ids = [i for i in session.trajectory.ids if i != tiny_model.language_model.placeholder]
    text = tiny_model.language_model.tokenizer.decode(ids)
    around = f"<|user|>[0]\n{sample.question}\nAnswer now.<|assistant|><think></think><answer>{sample.answer}</answer>"
    assert text.replace("<|end|>", "") == around
    assert session.sources[0].name == "the image in memory"


def test_the_order_of_rows_in_the_file_changes_nothing(root: Path) -> None:
    def everything() -> list[tuple[str, str, str, bytes]]:
        task = task_of(root, val=0.3)
        found = [sample for split in SPLITS for sample in samples_of(task, split)]
        return [(s.id, s.question, s.answer, s.originals[0].tobytes()) for s in found]

    before = everything()
    for split in ("train", "dev"):
        lines = lines_of(root, split)
        random.Random(0).shuffle(lines)
        set_lines(root, lines, split)
    assert everything() == before


def test_ids_and_order_know_nothing_of_the_labels(root: Path) -> None:
    before = [sample.id for sample in samples_of(task_of(root), "test")]
    flip = {'"true"': '"false"', '"false"': '"true"'}
    set_lines(root, [re.sub('"true"|"false"', lambda m: flip[m[0]], line) for line in lines_of(root, "dev")], "dev")
    assert [sample.id for sample in samples_of(task_of(root), "test")] == before


def test_samples_of_a_sentence_follow_each_other_with_pairs_and_permutations_mixed(root: Path) -> None:
    task = task_of(root)
    names = [name_of(task, sample) for sample in samples_of(task, "test")]
    groups = [names[start : start + 24] for start in range(0, len(names), 24)]
    for group in groups:
        assert len({n for _, n, _, _ in group}) == 1
        assert [(m, k) for _, _, m, k in group] != sorted((m, k) for _, _, m, k in group)
    assert len({tuple((m, k) for _, _, m, k in group) for group in groups}) == len(groups), "each in its own order"


# --- The metrics ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> tuple[NLVR, list[Sample]]:
    """A task, and its test samples as an evaluation keeps them."""
    task = NLVR(NLVR.tiny())
    return task, [replace(sample, originals=(), trace=()) for sample in samples_of(task, "test")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(places=st.lists(st.integers(0, 143), max_size=6), turned=st.booleans())
def test_consistency_is_that_of_the_published_files(
    asked: tuple[NLVR, list[Sample]], places: list[int], turned: bool
) -> None:
    """Told apart by the names of files, as who writes predictions by hand would have to."""
    task, samples = asked
    scores = [float((place in places) == turned) for place in range(len(samples))]
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for sample, score in zip(samples, scores, strict=True):
        right[name_of(task, sample)[1]].append(score == 1)
    found = task.metrics(samples, scores)["consistency"]
    assert np.mean(found) == np.mean([all(those) for those in right.values()]) and len(found) == 6


def test_a_sentence_of_which_not_all_was_asked_counts_for_no_consistency(root: Path) -> None:
    task = task_of(root)
    samples = samples_of(task, "test")
    assert task.metrics(samples[:23], [1.0] * 23) == {"consistency": []}
    assert task.metrics(samples[:30], [1.0] * 30) == {"consistency": [1.0]}
    assert task.metrics(samples, [0.0] + [1.0] * 143)["consistency"].count(1.0) == 5


def test_an_evaluation_says_accuracy_by_png_and_consistency_by_sentence(
    root: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    changed = ["task.name=nlvr", f"task.root={root}", "train.steps=2", f"run={tmp_path / 'run'}", "eval.items=52"]
    run = run_supervised(load_recipe(tiny_recipe, [*changed, "eval.arms=[blind,single_pass]", "eval.max_new_tokens=4"]))
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: SIM115
    arms = evaluate_run(run, [], console)["arms"]
    for arm in ("blind", "single_pass"):
        accuracy, consistency = arms[arm]["accuracy"]["all"], arms[arm]["metrics"]["consistency"]
        assert (accuracy["items"], accuracy["clusters"]) == (52, 3), "intervals over whole sentences"
        assert consistency["items"] == 2, "the third was not asked whole"
    shown = console.export_text()
    assert "consistency" in shown and "(n=2)" in shown and "(n=52)" in shown


@pytest.mark.parametrize("answer", ["true", " TRUE\n", "True"])
def test_case_and_outer_spaces_do_not_matter_and_no_answer_is_wrong(root: Path, answer: str) -> None:
    task = task_of(root)
    sample = replace(task.sample("test", 0), answer="true")
    assert task.score(sample, answer) == 1
    for wrong in (None, "", "yes", "false", "true or false", "1"):
        assert task.score(sample, wrong) == 0


def test_blind_training_samples_have_no_image_and_no_tool(root: Path) -> None:
    task = task_of(root, blind=0.4, tool=True)
    found = samples_of(task, "train")
    blind = [sample for sample in found if not sample.originals]
    assert 0.2 < len(blind) / len(found) < 0.6 and not any(sample.tool for sample in blind)
    assert all(sample.originals and sample.tool for sample in samples_of(task, "test"))


def test_the_corpus_holds_the_words_of_training_alone(root: Path) -> None:
    for split in ("train", "dev"):
        marked = [dict(row, sentence=f"there is {row['identifier']}") for row in map(json.loads, lines_of(root, split))]
        set_lines(root, [json.dumps(row) for row in marked], split)
    task = task_of(root, val=0.3)
    known = set(task.corpus())
    assert {sample.question for sample in samples_of(task, "train")} <= known
    assert not {sample.question for split in ("val", "test") for sample in samples_of(task, split)} & known


# --- What is damaged --------------------------------------------------------------------------------

GOOD = {"sentence": "There is a tower", "label": "true", "identifier": "0-0", "directory": "0"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "it is no valid JSON"),
        ("[1]", "it is no JSON object"),
        (json.dumps(GOOD)[:-1] + ', "label": "false"}', "the key 'label' stands twice in one object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "label"}), 'it has no "label", and without answers'),
        (json.dumps(GOOD | {"label": None}), 'it has no "label"'),
        (json.dumps(GOOD | {"label": "maybe"}), "'maybe' is neither true nor false"),
        (json.dumps(GOOD | {"label": True}), '"label" is missing, empty or no text'),
        (json.dumps(GOOD | {"sentence": " "}), '"sentence" is missing, empty or no text'),
        (json.dumps({k: v for k, v in GOOD.items() if k != "directory"}), '"directory" is missing'),
        (json.dumps(GOOD | {"identifier": "0"}), "'0' is not two numbers, like 72-0"),
        (json.dumps(GOOD | {"identifier": "../0-0"}), "is not two numbers"),
        (json.dumps(GOOD | {"directory": "../dev"}), "'../dev' is not the name of a folder"),
        (json.dumps(GOOD | {"identifier": "77-0"}), "train-77-0-0.png does not exist"),
        (json.dumps(GOOD), "its identifier 0-0 is that of line 1 too"),
    ],
)
def test_a_corrupt_row_is_named_with_its_file_and_line(root: Path, line: str, words: str) -> None:
    lines = lines_of(root)
    lines[4] = line
    file = set_lines(root, lines)
    with pytest.raises(InputError) as caught:
        task_of(root).length("test")
    said = str(caught.value)
    assert said.startswith(f"{file}, line 5: ") and words in said and "\n" not in said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.text(max_size=30)
        | st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=6) | st.integers() | st.none()).map(
            lambda changed: json.dumps(GOOD | changed)
        ),
        max_size=3,
    )
)
def test_whatever_the_lines_are_they_are_read_or_named(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "train" / "images" / "0").mkdir(parents=True, exist_ok=True)
    for permutation in range(6):
        (tmp_path / "train" / "images" / "0" / f"train-0-0-{permutation}.png").touch()
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    (tmp_path / "train" / "train.json").write_bytes(text)
    try:
        (pair,) = read_pairs(tmp_path, "train")
    except InputError as error:
        assert str(tmp_path / "train" / "train.json") in str(error)
    else:
        assert pair.identifier == "0-0" and pair.sentence and pair.label in ("true", "false")


def test_a_permutation_that_is_missing_is_named_before_anything_is_trained(root: Path) -> None:
    (root / "dev" / "images" / "1" / "dev-1001-2-4.png").unlink()
    with pytest.raises(InputError, match=r"dev.json, line 7: its image .*dev-1001-2-4.png does not exist"):
        task_of(root).length("train")


def test_an_image_that_cannot_be_read_is_named(root: Path) -> None:
    task = task_of(root)
    file = task.image_file(task.sample("test", 3).id)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=re.escape(str(file))):
        task.sample("test", 3)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere. Set task.root"):
        task_of(tmp_path / "nowhere").length("train")
    with pytest.raises(InputError, match=r"test.json does not exist. Set task.root"):
        task_of(root, test="test").length("test")
    set_lines(root, [""])
    with pytest.raises(InputError, match=r"train.json holds no row"):
        task_of(root).length("train")


def test_unknown_splits_indices_and_ids_are_refused(root: Path) -> None:
    task = task_of(root, val=0)
    with pytest.raises(UsageError, match=r"no split 'dev'\. Choose one of train, val, test"):
        task.length("dev")
    with pytest.raises(UsageError, match=r"'val' of 'nlvr' is empty"):
        task.sample("val", 0)
    for index in (-1, 144):
        with pytest.raises(IndexError, match="144 samples"):
            task.sample("test", index)
    with pytest.raises(UsageError, match="no sample 'nlvr/0'"):
        task.image_file("nlvr/0")


# --- The corpus itself ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> NLVR:
    if not os.environ.get("VILAVT_DATA"):
        pytest.skip("VILAVT_DATA is not set: the published corpora are not there")
    return NLVR(NLVRConfig(root=str(Path(os.environ["VILAVT_DATA"]) / "nlvr")))


def test_the_published_corpus_is_read_whole(published: NLVR) -> None:
    assert published.length("train") + published.length("val") == 6 * 1_000
    assert published.length("test") == 6 * 989
    sample = published.sample("test", 0)
    assert sample.originals[0].shape == (100, 400, 3)


@pytest.mark.parametrize("images", [900, pytest.param(6 * 989, marks=pytest.mark.nightly)])
def test_neither_ids_nor_places_tell_the_published_labels(published: NLVR, images: int) -> None:
    """Of two images of one sentence, the earlier and the one of the lower id are true as often as the other."""
    rows = [
        (item[0].group, item[0].label, published.sample("test", place).id)
        for place, item in enumerate(published._splits["test"][:images])
    ]
    of_group: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for group, label, name in rows:
        of_group[group].append((label, name))
    for key in (lambda place, row: place, lambda place, row: row[1]):
        earlier = []
        for those in of_group.values():
            order = sorted(range(len(those)), key=lambda place: key(place, those[place]))
            ranks = np.empty(len(those))
            ranks[order] = np.linspace(0, 1, len(those))
            labels = np.array([label == "true" for label, _ in those])
            if 0 < labels.sum() < len(labels):
                earlier.append(ranks[labels].mean() - ranks[~labels].mean())
        assert abs(np.mean(earlier)) < 4 * np.std(earlier) / np.sqrt(len(earlier))
