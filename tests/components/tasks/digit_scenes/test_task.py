"""Scenes, questions and traces of `digit_scenes` are what the task promises."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vilavt_components.tasks.digit_scenes import rendering
from vilavt_components.tasks.digit_scenes.layout import COLOURS, SHAPES, max_objects
from vilavt_components.tasks.digit_scenes.rendering import WRITERS, load_digits
from vilavt_components.tasks.digit_scenes.task import DigitScenes, DigitScenesConfig
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.errors import InputError, UsageError

TASK = DigitScenes(DigitScenesConfig())


def seen(sample: Sample) -> dict[str, tuple[int, int]]:
    """Name of every object in the trace's first thought -> its cell."""
    words = sample.trace[0].thought.removeprefix("see ").split("; ")[0].split()
    cells = TASK.config.cells
    triples = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {f"{colour} {shape}": (int(cell) % cells, int(cell) // cells) for cell, colour, shape in triples}


def far(samples: list[Sample]) -> list[Sample]:
    """Those that show a whole scene, not one object from close by."""
    return [sample for sample in samples if sample.tags["kind"] != "close"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [TASK.sample("test", index) for index in range(800)]


def test_same_seed_same_bytes_in_any_order() -> None:
    again = DigitScenes(DigitScenesConfig())
    for index in (7, 3):
        one, other = TASK.sample("train", index), again.sample("train", index)
        assert dataclasses.replace(one, originals=()) == dataclasses.replace(other, originals=())
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one.originals, other.originals, strict=True))


def test_the_quickstarts_samples_are_what_they_were() -> None:
    """Its numbers in the documents hold for these bytes; a change here is a new task."""
    task = DigitScenes(DigitScenesConfig(difficulty=0, own_colours=True, forced=0.08))
    texts, pixels = hashlib.sha256(), hashlib.sha256()
    for split in ("train", "test"):
        for index in range(21):
            sample = task.sample(split, index)
            tags = {name: sample.tags[name] for name in ("needs_zoom", "several", "family", "kind")}
            everything = dataclasses.asdict(dataclasses.replace(sample, originals=(), tags=tags))
            said = ("id", "question", "answer", "originals", "trace", "tool", "tags")
            plain = {name: everything[name] for name in said}
            assert not any(turn.pop("demanded") or turn.pop("question") for turn in plain["trace"])
            texts.update(json.dumps(plain, sort_keys=True).encode())
            for original in sample.originals:
                pixels.update(original.tobytes())
    assert texts.hexdigest() == "efe1a4540c5b0083f6831fcc45e5dbfa3e29b345b02376215c24978ca39d2b7b"
    assert pixels.hexdigest() == "ec9c0af8d467cc0ceff0609f21f991619b4365683c66f139e9b661c18d19fee8"
    corpus = hashlib.sha256("".join(f"{text}\n" for text in task.corpus()).encode())
    assert corpus.hexdigest() == "cb584a9c523667993a8f6ca87f28536ac23b16d3d6e1f6d6b2cfb8723037cee2"


def test_another_seed_split_or_index_is_another_scene() -> None:
    other = DigitScenes(DigitScenesConfig(seed=1))
    scenes = [TASK.sample("test", 0), TASK.sample("val", 0), TASK.sample("test", 1), other.sample("test", 0)]
    assert len({scene.originals[0].tobytes() for scene in scenes}) == 4
    assert len({scene.id for scene in scenes}) == 4


def test_scenes_are_images_of_the_size_asked_for(samples: list[Sample]) -> None:
    assert all(s.originals[0].shape == (256, 256, 3) and s.originals[0].dtype == np.uint8 for s in samples[:20])


def test_writers_of_the_splits_are_apart() -> None:
    ranges = sorted(WRITERS.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert ranges[-1][1] == len(load_digits().labels)
    for split in WRITERS:
        for digit in range(10):
            chosen = load_digits().select_indices(split, digit)
            assert len(chosen) > 5 and (load_digits().labels[chosen] == digit).all()


def test_about_a_third_needs_no_zoom_and_the_tags_say_so(samples: list[Sample]) -> None:
    share = np.mean([not s.tags["needs_zoom"] for s in samples])
    assert 0.28 < share < 0.39
    assert {s.tags["kind"] for s in samples} == {"digit", "shape", "colour", "close"}
    for sample in samples:
        assert sample.tags["needs_zoom"] == (len(sample.trace) == 2) == (sample.tags["kind"] == "digit")
        assert sample.answer.isdigit() == (sample.tags["kind"] in ("digit", "close"))


def test_the_same_question_needs_a_zoom_from_afar_and_none_from_close_by(samples: list[Sample]) -> None:
    asked = {kind: {s.question for s in samples if s.tags["kind"] == kind} for kind in ("digit", "close")}
    assert asked["close"] & asked["digit"]
    for sample in [s for s in samples if s.tags["kind"] == "close"][:20]:
        assert sample.trace[0].thought == sample.answer == sample.trace[0].answer
        assert sample.originals[0].shape == (256, 256, 3)


def test_training_digits_are_written_by_more_hands_than_test_digits() -> None:
    for split, same in (("test", True), ("train", False)):
        plain, hands = (DigitScenes(DigitScenesConfig(hands=hands)).sample(split, 0) for hands in (0.0, 1.0))
        assert (plain.originals[0].tobytes() == hands.originals[0].tobytes()) == same


def test_every_object_is_named_once_in_reading_order(samples: list[Sample]) -> None:
    for sample in far(samples):
        places = seen(sample)
        assert len(places) == 4 == len(set(places.values()))
        assert list(places.values()) == sorted(places.values(), key=lambda cell: cell[::-1])


def test_questions_without_a_zoom_have_one_answer_in_the_scene(samples: list[Sample]) -> None:
    for sample in far(samples):
        names = [name.split() for name in seen(sample)]
        words = sample.question.rstrip("?").split()
        if sample.tags["kind"] == "shape":
            assert [shape for colour, shape in names if colour in words] == [sample.answer]
        if sample.tags["kind"] == "colour":
            assert [colour for colour, shape in names if shape in words] == [sample.answer]


def test_the_zoom_shows_the_asked_object_and_its_neighbour_if_it_has_one(samples: list[Sample]) -> None:
    several = 0
    zooms = [s for s in samples if s.tags["needs_zoom"]]
    for sample in zooms:
        turn, places = sample.trace[0], seen(sample)
        ((index, box),) = turn.boxes
        assert index == 0 and turn.inquiry in sample.question
        column, row = places[turn.inquiry]
        beside = [c for c in places.values() if abs(c[0] - column) + abs(c[1] - row) == 1]
        cells = [(column, row), *beside]
        assert len(beside) == sample.tags["several"]
        assert box == (
            64 * min(c for c, _ in cells),
            64 * min(r for _, r in cells),
            64 * max(c + 1 for c, _ in cells),
            64 * max(r + 1 for _, r in cells),
        )
        several += sample.tags["several"]
    assert 0.28 < several / len(zooms) < 0.42


def test_place_in_a_crop_of_two_does_not_tell_which_is_asked() -> None:
    task = DigitScenes(DigitScenesConfig(several=1, no_zoom=0))
    first = []
    for index in range(600):
        sample = task.sample("val", index)
        x, y = seen(sample)[sample.trace[0].inquiry]
        first.append((64 * x, 64 * y) == sample.trace[0].boxes[0][1][:2])
    assert 0.44 < np.mean(first) < 0.56


def test_two_digits_in_one_crop_differ() -> None:
    task = DigitScenes(DigitScenesConfig(several=1, no_zoom=0))
    for index in range(200):
        item, _, _ = task._make_question("test", index)
        ((_, (left, upper, right, lower)),) = item.zooms
        shown = [t.digit for t in item.scenes[0] if left <= t.cell[0] < right and upper <= t.cell[1] < lower]
        assert len(set(shown)) == 2


def test_answers_are_balanced(samples: list[Sample]) -> None:
    digits = Counter(s.answer for s in samples if s.tags["needs_zoom"])
    assert len(digits) == 10 and max(digits.values()) < 2 * min(digits.values())
    shapes = Counter(s.answer for s in samples if s.tags["kind"] == "shape")
    colours = Counter(s.answer for s in samples if s.tags["kind"] == "colour")
    assert set(shapes) == set(SHAPES) and set(colours) == set(COLOURS)


def test_some_training_samples_go_without_tool_or_image_and_no_others() -> None:
    train = [TASK.sample("train", index) for index in range(600)]
    blind = [s for s in train if not s.originals]
    forced = [s for s in train if s.originals and not s.tool]
    assert 0.02 < len(blind) / len(train) < 0.06 and 0.09 < len(forced) / len(train) < 0.15
    assert all(not s.tool and len(s.trace) == 1 and s.trace[0].answer == s.answer for s in blind + forced)
    assert all(s.tool and s.originals for split in ("val", "test") for s in (TASK.sample(split, i) for i in range(60)))


def test_an_answer_may_be_demanded_with_what_a_zoom_shows_in_training_only() -> None:
    demanding = DigitScenes(DigitScenesConfig(demanded=0.5))
    zooms = []
    for index in range(120):
        plain, sample = TASK.sample("train", index), demanding.sample("train", index)
        assert [replace(turn, demanded=False) for turn in sample.trace] == list(plain.trace)
        zooms += [turn.demanded for turn in sample.trace if turn.boxes]
        assert not any(turn.demanded for turn in demanding.sample("test", index).trace)
    assert 0.4 < sum(zooms) / len(zooms) < 0.6


def test_needless_zooms_are_shown_in_training_only_and_change_nothing_else() -> None:
    wasteful = DigitScenes(DigitScenesConfig(needless=1))
    zooms = 0
    for index in range(100):
        plain, needless = TASK.sample("train", index), wasteful.sample("train", index)
        assert (plain.question, plain.answer, plain.tool) == (needless.question, needless.answer, needless.tool)
        assert all((a == b).all() for a, b in zip(plain.originals, needless.originals, strict=True))
        more = len(needless.trace) - len(plain.trace)
        assert more == (plain.tool and plain.tags["kind"] in ("shape", "colour"))
        zooms += more
        test = wasteful.sample("test", index)
        assert len(test.trace) == 1 + test.tags["needs_zoom"]
    assert zooms > 5


def test_further_questions_name_other_objects_of_the_scene_and_are_answered_by_it() -> None:
    settings = {"own_colours": True, "forced": 0.2, "needless": 0.5}
    asking = DigitScenes(DigitScenesConfig(follow_ups=0.5, **settings))
    plain = DigitScenes(DigitScenesConfig(**settings))
    kinds: Counter[str] = Counter()
    for index in range(120):
        sample, before = asking.sample("train", index), plain.sample("train", index)
        first = len(before.trace)
        assert sample.trace[:first] == before.trace and (sample.question, sample.answer) == (
            before.question,
            before.answer,
        )
        asked = [turn.question for turn in sample.trace[first:] if turn.question]
        kinds["eligible"] += sample.tool and sample.tags["kind"] != "close"
        kinds["several"] += bool(asked)
        assert len(asked) <= 2 and (not asked or (sample.tool and sample.tags["kind"] != "close"))
        assert not any(turn.question for turn in sample.trace[:first])
        objects = {item.name: item for item in asking._make_question("train", index)[0].scenes[0]}
        previous = sample.question
        for number, turn in enumerate(sample.trace[first:], first):
            if not turn.question:
                continue
            found = [item for item in objects.values() if item.name in turn.question]
            if "shape" in turn.question:
                (item,) = [item for item in objects.values() if item.colour in turn.question.split()]
                assert turn.answer == item.shape and not turn.boxes
                kinds["shape"] += 1
            else:
                (item,) = found
                column, row = item.cell
                assert turn.boxes == ((0, (64.0 * column, 64.0 * row, 64.0 * column + 64, 64.0 * row + 64)),)
                assert turn.inquiry == item.name and sample.trace[number + 1].answer == str(item.digit)
                kinds["short" if turn.question.startswith("and on the ") else "full"] += 1
                assert not turn.question.startswith("and on") or "digit" in previous or "and on" in previous
            assert item.name not in before.trace[0].inquiry and turn.thought.startswith(f"so {item.name} ")
            previous = turn.question
        test = asking.sample("test", index)
        assert not any(turn.question for turn in test.trace)
    assert 0.35 < kinds["several"] / kinds["eligible"] < 0.65
    assert min(kinds[kind] for kind in ("short", "full", "shape")) > 5


def test_the_corpus_holds_every_word_that_samples_use(samples: list[Sample]) -> None:
    corpus = list(TASK.corpus())
    assert corpus == list(TASK.corpus())
    known = {word for text in corpus for word in text.split()}
    for sample in samples:
        texts = [sample.question, sample.answer, *(turn.thought for turn in sample.trace)]
        assert {word for text in texts for word in text.split()} <= known


def test_the_corpus_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vilavt_components.tasks.digit_scenes.task.render_scene", None)
    assert sum(1 for _ in TASK.corpus()) > 4000


def test_objects_show_in_their_cells_and_digits_only_in_the_crop() -> None:
    """The mean colour of an object's middle is its own, whichever digit it carries."""
    task = DigitScenes(DigitScenesConfig(difficulty=0, no_zoom=0))
    strongest = {"red": 0, "green": 1, "blue": 2}
    for index in range(40):
        sample = task.sample("test", index)
        for name, (column, row) in seen(sample).items():
            middle = sample.originals[0][64 * row + 24 : 64 * row + 40, 64 * column + 24 : 64 * column + 40]
            colour = name.split()[0]
            mean = middle.reshape(-1, 3).mean(axis=0)
            if colour in strongest:
                assert mean.argmax() == strongest[colour]
            assert middle.astype(float).std(axis=(0, 1)).max() > 10, "the digit's strokes"


def test_objects_of_own_colours_share_none_and_still_name_one_thing() -> None:
    task = DigitScenes(DigitScenesConfig(own_colours=True))
    for sample in far([task.sample("test", index) for index in range(200)]):
        names = [name.split() for name in seen(sample)]
        assert len({colour for colour, _ in names}) == len(names) == 4
        if sample.tags["kind"] == "colour":
            asked = sample.question.removeprefix("what colour is the ").removesuffix("?")
            assert [colour for colour, shape in names if shape == asked] == [sample.answer]


def test_camouflaged_digits_average_out_in_a_small_view() -> None:
    def seen_small(camouflage: float) -> float:
        task = DigitScenes(DigitScenesConfig(difficulty=0, no_zoom=0, camouflage=camouflage))
        spreads = []
        for index in range(20):
            sample = task.sample("test", index)
            column, row = seen(sample)[sample.trace[0].inquiry]
            middle = sample.originals[0][64 * row + 16 : 64 * row + 48, 64 * column + 16 : 64 * column + 48]
            spreads.append(middle.astype(float).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4)).std())
        return float(np.mean(spreads))

    assert seen_small(1.0) < 0.5 * seen_small(0.0)


def test_harder_scenes_are_noisier() -> None:
    def roughness(difficulty: float) -> float:
        task = DigitScenes(DigitScenesConfig(difficulty=difficulty))
        return float(
            np.mean([np.abs(np.diff(task.sample("test", i).originals[0].astype(int))).mean() for i in range(9)])
        )

    assert roughness(0.0) < roughness(0.5) < roughness(1.0)


@pytest.mark.parametrize(
    "settings", [{"size": 32, "cells": 2, "objects": 2}, {"cells": 8, "objects": 13, "difficulty": 1.0}]
)
def test_the_settings_reach_their_ends(settings: dict[str, float]) -> None:
    task = DigitScenes(DigitScenesConfig(several=0.5, no_zoom=0, **settings))
    for index in range(60):
        sample = task.sample("test", index)
        assert len(seen(sample)) == settings["objects"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cells": 3}, "Cells must divide size"),
        ({"cells": 2, "objects": 3}, "Set objects to 2 or fewer"),
        ({"forced": 0.8, "blind": 0.4}, "together exceed 1"),
        ({"cells": 8, "objects": 5, "own_colours": True}, "colours to themselves"),
        ({"families": []}, "Name at least one of one_image, two_images, video, referring"),
        ({"families": ["video", "video"]}, "names one twice"),
        ({"families": {"film": 1.0}}, "no family 'film'"),
        ({"families": {"video": 0.7, "referring": 0.2}}, "shares sum to 0.9"),
        ({"families": {"video": 1.0, "referring": 0.0}}, "the share 0.0 of referring is not above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DigitScenesConfig(**settings)
    assert max_objects(2) == 2 and max_objects(4) == 12


def test_unknown_splits_and_indices_are_refused() -> None:
    assert (TASK.length("train"), TASK.length("test")) == (20_000, 1_000)
    with pytest.raises(UsageError, match=r"no split 'dev'\. Choose one of train, val, test"):
        TASK.length("dev")
    for index in (-1, 1_000):
        with pytest.raises(IndexError):
            TASK.sample("test", index)


def test_scores_ignore_case_and_outer_spaces_only(samples: list[Sample]) -> None:
    sample = next(s for s in samples if s.tags["kind"] == "shape")
    assert TASK.score(sample, f"  {sample.answer.upper()}\n") == 1
    for wrong in (None, "", f"a {sample.answer}"):
        assert TASK.score(sample, wrong) == 0


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"vilavt-toolkit\[demo\]"):
        rendering.load_digits.__wrapped__()
