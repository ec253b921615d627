"""Clouds, questions and traces of `shape_clouds` are what the task promises."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import numpy as np
import pytest

from vilavt_components.tasks.shape_clouds.layout import COLOURS, SHAPES
from vilavt_components.tasks.shape_clouds.task import ShapeClouds, ShapeCloudsConfig
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import UsageError

TASK = ShapeClouds(ShapeCloudsConfig())
EASY = ShapeClouds(ShapeCloudsConfig(difficulty=0))
MARKS = ("bands", "stripes", "spirals", "dots", "checks")
KINDS = {"mark", "nearest", "close", "shape", "taller"}


def seen(sample: Sample) -> dict[str, tuple[str, int, int]]:
    """Colour of every object in the trace's first thought -> (shape, column, row)."""
    words = sample.trace[0].thought.removeprefix("see ").split("; ")[0].split()
    triples = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {colour: (shape, int(cell) % 4, int(cell) // 4) for colour, shape, cell in triples}


def of_kind(samples: list[Sample], *kinds: str) -> list[Sample]:
    return [sample for sample in samples if sample.tags["kind"] in kinds]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [TASK.sample("test", index) for index in range(600)]


def test_same_seed_same_bytes_in_any_order_and_no_split_repeats_another() -> None:
    again = ShapeClouds(ShapeCloudsConfig())
    for index in (7, 3):
        one, other = TASK.sample("train", index), again.sample("train", index)
        assert dataclasses.replace(one, originals=()) == dataclasses.replace(other, originals=())
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one.originals, other.originals, strict=True))
    first = [TASK.sample(split, index) for split in ("val", "test") for index in range(50)]
    first += [ShapeClouds(ShapeCloudsConfig(seed=1)).sample("test", index) for index in range(50)]
    assert len({sample.originals[0].tobytes() for sample in first}) == len({sample.id for sample in first}) == 150


def test_clouds_are_coloured_points_on_the_whole_floor(samples: list[Sample]) -> None:
    for sample in samples[:50]:
        (points,) = sample.originals
        cells = 1 if sample.tags["kind"] == "close" else 4
        assert points.dtype == np.float32 and points.shape[1] == 6 and np.isfinite(points).all()
        assert points[:, 3:].min() >= 0 and points[:, 3:].max() <= 1
        assert points[:, :3].min(axis=0).tolist() == [0, 0, 0]
        assert points[:, :2].max(axis=0).tolist() == [cells, cells] and 0.2 < points[:, 2].max() < 1


def test_about_a_third_needs_no_zoom_and_the_tags_say_so(samples: list[Sample]) -> None:
    assert 0.27 < np.mean([not sample.tags["needs_zoom"] for sample in samples]) < 0.4
    assert {sample.tags["kind"] for sample in samples} == KINDS
    for sample in samples:
        assert sample.tags["needs_zoom"] == (len(sample.trace) == 2) == (sample.tags["kind"] in ("mark", "nearest"))
        assert (sample.answer in MARKS) == (sample.tags["family"] == "marks")
        assert sample.tags["answer_kind"] == "text"
        assert not sample.tags["several"] or sample.tags["kind"] == "mark"


def test_every_object_is_named_once_in_the_order_of_the_colours(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.tags["kind"] == "close":
            assert sample.trace[0].thought == sample.answer
            continue
        objects = seen(sample)
        assert tuple(objects) == COLOURS and {shape for shape, _, _ in objects.values()} <= set(SHAPES)
        assert len({place for _, *place in objects.values() for place in [tuple(place)]}) == 4


def test_named_objects_stand_where_the_trace_says() -> None:
    strongest = {"red": 0, "green": 1, "blue": 2}
    for sample in of_kind([EASY.sample("test", index) for index in range(60)], "mark", "nearest", "shape"):
        (points,) = sample.originals
        for colour, (_, column, row) in seen(sample).items():
            inside = ((points[:, :2] > (column, row)) & (points[:, :2] < (column + 1, row + 1))).all(axis=1)
            assert inside.sum() == 1500
            mean = points[inside, 3:].mean(axis=0)
            assert colour not in strongest or mean.argmax() == strongest[colour]


def test_the_zoom_shows_the_asked_object_and_its_neighbour_if_it_is_asked_for_by_name(samples: list[Sample]) -> None:
    zooms = of_kind(samples, "mark", "nearest")
    for sample in zooms:
        turn, objects = sample.trace[0], seen(sample)
        ((index, box),) = turn.boxes
        colour, shape = turn.inquiry.split()
        assert index == 0 and objects[colour][0] == shape
        _, column, row = objects[colour]
        beside = [(c, r) for _, c, r in objects.values() if abs(c - column) + abs(r - row) == 1]
        cells = [(column, row), *(beside if sample.tags["kind"] == "mark" else [])]
        assert (len(cells) == 2) == sample.tags["several"]
        assert box[:2] == (min(c for c, _ in cells), min(r for _, r in cells))
        assert box[3:5] == (max(c for c, _ in cells) + 1, max(r for _, r in cells) + 1)
    assert 0.2 < np.mean([sample.tags["several"] for sample in zooms]) < 0.33


def test_the_nearest_object_is_the_asked_one_and_the_other_is_named_by_a_shape_of_its_own(
    samples: list[Sample],
) -> None:
    nearest = of_kind(samples, "nearest")
    assert len(nearest) > 80
    for sample in nearest:
        objects = seen(sample)
        shape = sample.question.removeprefix("what mark is on the object nearest the ").removesuffix("?")
        (reference,) = [place for place in objects.values() if place[0] == shape]
        away = {
            f"{colour} {place[0]}": (place[1] - reference[1]) ** 2 + (place[2] - reference[2]) ** 2
            for colour, place in objects.items()
            if place is not reference
        }
        assert [name for name, far in away.items() if far == min(away.values())] == [sample.trace[0].inquiry]


def test_questions_without_a_zoom_have_one_answer_in_the_scene(samples: list[Sample]) -> None:
    for sample in of_kind(samples, "shape"):
        colour = sample.question.split()[4]
        assert seen(sample)[colour][0] == sample.answer
    for sample in of_kind(samples, "taller"):
        words = sample.question.rstrip("?").split()
        one, other = words[4], words[-1]
        shapes = [shape for shape, _, _ in seen(sample).values()]
        assert shapes.count(one) == shapes.count(other) == 1 and sample.answer in (one, other)


def test_what_is_called_taller_is_taller() -> None:
    for task in (EASY, TASK):
        for sample in of_kind([task.sample("val", index) for index in range(200)], "taller"):
            (points,) = sample.originals
            heights = {}
            for shape, column, row in seen(sample).values():
                inside = ((points[:, :2] > (column, row)) & (points[:, :2] < (column + 1, row + 1))).all(axis=1)
                heights.setdefault(shape, points[inside, 2].max())
            words = sample.question.rstrip("?").split()
            assert max((words[4], words[-1]), key=lambda shape: heights[shape]) == sample.answer


def test_the_share_of_marked_points_does_not_tell_the_mark() -> None:
    """Else the first view would do: it has some points of every object."""
    shares: dict[str, list[float]] = {mark: [] for mark in MARKS}
    task = ShapeClouds(ShapeCloudsConfig(difficulty=0, no_zoom=0, several=0, nearest=0))
    for index in range(400):
        sample = task.sample("val", index)
        _, column, row = seen(sample)[sample.trace[0].inquiry.split()[0]]
        points = sample.originals[0]
        inside = ((points[:, :2] > (column, row)) & (points[:, :2] < (column + 1, row + 1))).all(axis=1)
        shares[sample.answer].append(float((points[inside, 3:].min(axis=1) > 0.9).mean()))
    means = {mark: np.mean(found) for mark, found in shares.items()}
    assert max(means.values()) - min(means.values()) < 0.06, means


def test_two_marks_in_one_zoom_differ_and_their_places_do_not_tell_which_is_asked() -> None:
    task = ShapeClouds(ShapeCloudsConfig(several=1, no_zoom=0, nearest=0))
    first = []
    for index in range(500):
        item, _, _ = task._make_question("val", index)
        assert item.shows_several and item.objects[0].mark != item.objects[1].mark and item.zoom is not None
        first.append(item.objects[0].cell == item.zoom[:2])
    assert 0.43 < np.mean(first) < 0.57


def test_answers_are_balanced(samples: list[Sample]) -> None:
    for kinds, answers in ((("mark", "nearest", "close"), MARKS), (("shape",), SHAPES)):
        counts = Counter(sample.answer for sample in of_kind(samples, *kinds))
        assert set(counts) == set(answers) and max(counts.values()) < 2.5 * min(counts.values())
    taller = of_kind(samples, "taller")
    assert 0.3 < np.mean([sample.question.endswith(f"the {sample.answer}?") for sample in taller]) < 0.7


def test_some_training_samples_go_without_tool_or_cloud_and_no_others() -> None:
    train = [TASK.sample("train", index) for index in range(800)]
    blind = [s for s in train if not s.originals]
    forced = [s for s in train if s.originals and not s.tool]
    assert 0.02 < len(blind) / len(train) < 0.07 and 0.05 < len(forced) / len(train) < 0.12
    assert all(not s.tool and len(s.trace) == 1 and s.trace[0].answer == s.answer for s in blind + forced)
    assert all(s.tool and s.originals for split in ("val", "test") for s in (TASK.sample(split, i) for i in range(200)))


def test_the_corpus_holds_every_word_that_samples_use_and_samples_no_points(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vilavt_components.tasks.shape_clouds.task.sample_cloud", None)
    corpus = list(TASK.corpus())
    assert corpus == list(TASK.corpus())
    known = {word for text in corpus for word in text.split()}
    for sample in samples:
        texts = [sample.question, sample.answer, *(turn.thought for turn in sample.trace)]
        assert {word for text in texts for word in text.split()} <= known


def test_harder_clouds_are_noisier() -> None:
    """Beside an object nothing stands where nothing is added."""

    def stray(difficulty: float) -> int:
        task = ShapeClouds(ShapeCloudsConfig(difficulty=difficulty))
        return sum(len(task.sample("test", index).originals[0]) for index in range(9))

    assert stray(0.0) < stray(0.5) < stray(1.0)


def test_a_cloud_is_made_in_milliseconds() -> None:
    EASY.sample("test", 0)
    begun = time.process_time()
    for index in range(20):
        EASY.sample("test", index)
    assert time.process_time() - begun < 20 * 0.02


def test_metrics_are_the_scores_of_every_kind(samples: list[Sample]) -> None:
    scores = [float(sample.tags["kind"] in ("close", "shape")) for sample in samples]
    found = TASK.metrics(samples, scores)
    assert set(found) == KINDS and sum(len(part) for part in found.values()) == len(samples)
    assert set(found["close"]) == {1.0} and set(found["mark"]) == {0.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"forced": 0.8, "blind": 0.4}, "together exceed 1"),
        ({"cells": 2, "objects": 3}, "Set objects to 2 or fewer"),
        ({"marks": ["dots"]}, "two different marks"),
        ({"marks": ["dots", "dots"]}, "two different marks"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ShapeCloudsConfig(**given)


@pytest.mark.parametrize("given", [{"cells": 2, "objects": 2, "points": 50}, {"cells": 8, "difficulty": 1.0}])
def test_the_settings_reach_their_ends(given: dict[str, float]) -> None:
    task = ShapeClouds(ShapeCloudsConfig(several=0.5, **given))
    for index in range(40):
        assert len(task.sample("test", index).originals) == 1


def test_only_the_marks_that_are_named_are_used() -> None:
    task = ShapeClouds(ShapeCloudsConfig(marks=["dots", "bands"], no_zoom=0, several=0.5))
    for index in range(60):
        item, _, _ = task._make_question("test", index)
        assert {thing.mark for thing in item.objects} <= {"dots", "bands"}


def test_unknown_splits_and_indices_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no split 'dev'\. Choose one of train, val, test"):
        TASK.length("dev")
    for index in (-1, 1_000):
        with pytest.raises(IndexError):
            TASK.sample("test", index)


def test_scores_ignore_case_and_outer_spaces_only(samples: list[Sample]) -> None:
    sample = samples[0]
    assert TASK.score(sample, f"  {sample.answer.upper()}\n") == 1
    for wrong in (None, "", f"a {sample.answer}"):
        assert TASK.score(sample, wrong) == 0
