"""Two images, videos and boxes of `digit_scenes`: right answers, no shortcuts, and dialogues that can be had."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.common.answers.boxes import box_iou
from vilavt_components.tasks.digit_scenes import box_answers as boxes
from vilavt_components.tasks.digit_scenes.layout import COLOURS, SHAPES, SceneObject
from vilavt_components.tasks.digit_scenes.question import SceneQuestion, cell_number
from vilavt_components.tasks.digit_scenes.rendering import SceneStyle, object_box, render_scene, sample_randomness
from vilavt_components.tasks.digit_scenes.task import DigitScenes, DigitScenesConfig
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import RecipeErrors

FAMILIES = ["one_image", "two_images", "video", "referring"]
CONFIG = DigitScenesConfig(families=FAMILIES, own_colours=True, box_units=4)
TASK = DigitScenes(CONFIG)
KINDS = {
    "two_images": {"both", "same_place", "same_digit", "larger", "above"},
    "video": {"moves", "where", "appears", "first", "becomes", "changes"},
    "referring": {"named", "carries"},
}
ZOOMED = {"digit", "same_digit", "larger", "above", "becomes", "changes", "carries"}


def items(count: int, **settings: object) -> list[SceneQuestion]:
    """Items of the training split, whatever they are asked with."""
    task = DigitScenes(dataclasses.replace(CONFIG, train_items=count, **settings))
    return [task._make_question("train", index)[0] for index in range(count)]


@pytest.fixture(scope="module", params=[True, False], ids=["own colours", "shared colours"])
def many(request: pytest.FixtureRequest) -> list[SceneQuestion]:
    return items(6000, own_colours=request.param)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [TASK.sample("test", index) for index in range(240)]


# --- The mix -----------------------------------------------------------------------------------------


def test_every_family_has_its_share_and_all_its_kinds(many: list[SceneQuestion]) -> None:
    shares = Counter(item.family for item in many)
    assert set(shares) == set(FAMILIES) and all(0.22 < n / len(many) < 0.28 for n in shares.values())
    for family, kinds in KINDS.items():
        assert {item.kind for item in many if item.family == family} == kinds
    mixed = Counter(item.family for item in items(2000, families={"video": 0.8, "referring": 0.2}))
    assert set(mixed) == {"video", "referring"} and 0.77 < mixed["video"] / 2000 < 0.83


def test_a_sample_is_the_same_whatever_other_families_there_are() -> None:
    alone = DigitScenes(dataclasses.replace(CONFIG, families=["video"]))
    found = 0
    for index in range(40):
        mixed = TASK.sample("val", index)
        if mixed.tags["family"] == "video":
            other = alone.sample("val", index)
            assert other.question == mixed.question and other.trace == mixed.trace
            assert all(np.array_equal(a, b) for a, b in zip(other.originals, mixed.originals, strict=True))
            found += 1
    assert found > 3


def test_same_seed_same_bytes_and_another_seed_another_sample() -> None:
    again, other = DigitScenes(CONFIG), DigitScenes(dataclasses.replace(CONFIG, seed=1))
    for index in range(12):
        sample, same = TASK.sample("train", index), again.sample("train", index)
        assert dataclasses.replace(sample, originals=()) == dataclasses.replace(same, originals=())
        assert [o.tobytes() for o in sample.originals] == [o.tobytes() for o in same.originals]
        assert other.sample("train", index).trace != sample.trace or not sample.originals


def test_tags_say_what_a_sample_needs(samples: list[Sample]) -> None:
    images = {"one_image": 1, "two_images": 2, "video": 3, "referring": 1}
    for sample in samples:
        tags = sample.tags
        assert len(sample.originals) == images[tags["family"]]
        assert tags["needs_zoom"] == (tags["kind"] in ZOOMED) == (len(sample.trace) == 2)
        assert not tags["several"] or tags["needs_zoom"]
        readable: dict[str, Callable[[str], object]] = {
            "number": str.isdigit,
            "yes_no": {"yes", "no"}.__contains__,
            "box": lambda answer: boxes.read_answer(answer, 256, 4),
            "text": lambda answer: set(answer.split()) <= {*COLOURS, *SHAPES},
        }
        assert readable[tags["answer_kind"]](sample.answer), sample


def test_scores_of_every_family_are_reported_apart_where_there_are_several(samples: list[Sample]) -> None:
    found = TASK.metrics(samples, [float(sample.tags["family"] == "video") for sample in samples])
    assert list(found) == ["one image", "two images", "video", "referring"]
    assert {name: np.mean(scores) for name, scores in found.items()} == {
        "one image": 0,
        "two images": 0,
        "video": 1,
        "referring": 0,
    }
    assert sum(map(len, found.values())) == len(samples)
    assert not DigitScenes(DigitScenesConfig()).metrics(samples, [1.0] * len(samples))


# --- Answers -----------------------------------------------------------------------------------------


def right(item: SceneQuestion) -> object:
    """The answer to a question, from the scenes and its words alone."""
    found = re.search(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", item.question)
    name = found[0] if found else ""
    at = [next((thing for thing in things if thing.name == name), None) for things in item.scenes]
    return _RIGHT[item.kind](item, at)


def cells_over_time(item: SceneQuestion) -> dict[str, list[tuple[int, int] | None]]:
    """Where every object is in every frame."""
    names = {thing.name for things in item.scenes for thing in things}
    places = [{thing.name: thing.cell for thing in things} for things in item.scenes]
    return {name: [frame.get(name) for frame in places] for name in names}


def changed(values: list[object]) -> list[int]:
    return [frame for frame, (a, b) in enumerate(pairwise(values), start=1) if a != b]


def _moved(item: SceneQuestion) -> list[str]:
    """Objects that move, in the order in which they do."""
    moves = {name: changed(list(cells)) for name, cells in cells_over_time(item).items()}
    assert all(len(frames) <= 1 for frames in moves.values())
    return sorted((name for name in moves if moves[name]), key=lambda name: moves[name])


def _the(found: list[object]) -> object:
    (one,) = found
    return one


def _with_digit(item: SceneQuestion) -> SceneObject:
    found = re.fullmatch(r"where is the (\w+) with digit (\d)\?", item.question)
    assert found is not None
    shape, digit = found.groups()
    return _the([t for t in item.scenes[0] if t.shape == shape and t.digit == int(digit)])


_Right = Callable[[SceneQuestion, list[SceneObject | None]], object]
_RIGHT: dict[str, _Right] = {
    "digit": lambda item, at: str(at[0].digit),
    "close": lambda item, at: str(at[0].digit),
    "shape": lambda item, at: _the([t.shape for t in item.scenes[0] if t.colour in item.question.split()]),
    "colour": lambda item, at: _the([t.colour for t in item.scenes[0] if f" {t.shape}?" in item.question]),
    "both": lambda item, at: "yes" if all(at) else "no",
    "same_place": lambda item, at: "yes" if at[0].cell == at[1].cell else "no",
    "same_digit": lambda item, at: "yes" if at[0].digit == at[1].digit else "no",
    "larger": lambda item, at: "yes" if at[1].digit > at[0].digit else "no",
    "above": lambda item, at: "yes" if _the([t for t in at if t]).digit > 4 else "no",
    "moves": lambda item, at: _the(_moved(item)),
    "where": lambda item, at: at[-1],
    "appears": lambda item, at: str(_the(changed([thing is not None for thing in at]))),
    "first": lambda item, at: next(name for name in _moved(item) if name in item.question),
    "becomes": lambda item, at: str(at[int(item.question[-2])].digit),
    "changes": lambda item, at: str(_the(changed([thing.digit for thing in at]))),
    "named": lambda item, at: at[0],
    "carries": lambda item, at: _with_digit(item),
}


def test_answers_follow_from_what_the_images_show(many: list[SceneQuestion]) -> None:
    for item in many:
        answer = right(item)
        assert answer == (item.answer if item.answer_object is None else item.answer_object[1]), item
        if item.answer_object is not None:
            assert item.answer_object[1] in item.scenes[item.answer_object[0]]


def test_traces_say_where_things_are_and_zooms_show_what_is_asked(many: list[SceneQuestion]) -> None:
    for item in many:
        assert item.is_close_up or item.thought.startswith("see ")
        for things in item.scenes[:1] if item.is_film else item.scenes:
            assert item.is_close_up or " ".join(f"{cell_number(t.cell, 4)} {t.name}" for t in things) in item.thought
        shown = []
        for image, (left, upper, right_, lower) in item.zooms:
            inside = [t for t in item.scenes[image] if left <= t.cell[0] < right_ and upper <= t.cell[1] < lower]
            named = [t for t in inside if item.inquiry in (t.name, t.shape)]
            assert len(inside) <= 2 and len(named) == 1, item
            shown.append(named[0].digit)
            assert len(inside) == len({t.digit for t in inside}), "two digits in one crop differ"
        assert not item.zooms or item.zoom_thought.split("; so ")[0] == ",".join(map(str, shown))
        assert item.shows_several == any((x2 - x1) * (y2 - y1) > 1 for _, (x1, y1, x2, y2) in item.zooms)


def test_the_frames_of_a_film_name_what_is_new_in_them(many: list[SceneQuestion]) -> None:
    for item in [item for item in many if item.is_film]:
        said = item.thought.split("; ")[1:-1]
        assert len(said) == len(item.scenes) - 1 == 2
        for frame, text in enumerate(said, start=1):
            before, now = ({(t.name, t.cell) for t in item.scenes[f]} for f in (frame - 1, frame))
            new = " ".join(f"{cell_number(cell, 4)} {name}" for name, cell in now - before)
            assert text == f"frame {frame} {new or 'same'}"


CHANCE = {
    **dict.fromkeys(["both", "same_place", "same_digit", "larger", "above", "first", "appears", "changes"], 1 / 2),
    **dict.fromkeys(["digit", "close", "becomes"], 1 / 10),
    **dict.fromkeys(["shape", "colour"], 1 / 4),
    **dict.fromkeys(["moves", "where", "named", "carries"], 1 / 16),
}


def test_the_question_alone_gives_no_answer_away(many: list[SceneQuestion]) -> None:
    """The likeliest answer to a question among half of the items is no better than chance on the other half."""
    kinds = defaultdict(list)
    for item in many:
        answer = item.answer if item.answer_object is None else str(item.answer_object[1].cell)
        kinds[item.kind].append((item.question, answer))
    assert set(kinds) == set(CHANCE)
    for kind, pairs in kinds.items():
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        half = len(pairs) // 2
        for question, answer in pairs[:half]:
            seen[question][answer] += 1
        guessed = [bool(seen[q]) and seen[q].most_common(1)[0][0] == answer for q, answer in pairs[half:]]
        spread = 4 * np.sqrt(CHANCE[kind] * (1 - CHANCE[kind]) / len(guessed))
        assert np.mean(guessed) < CHANCE[kind] + spread, kind
        likeliest = Counter(answer for _, answer in pairs).most_common(1)[0][1] / len(pairs)
        assert likeliest < CHANCE[kind] + 5 * np.sqrt(CHANCE[kind] / len(pairs)), kind


def test_yes_is_as_likely_as_no_in_every_kind() -> None:
    kinds = defaultdict(list)
    for item in items(6000, families=["two_images"]):
        kinds[item.kind].append(item.answer == "yes")
    assert set(kinds) == KINDS["two_images"]
    for kind, truths in kinds.items():
        assert abs(np.mean(truths) - 0.5) < 0.055, kind


def test_the_place_of_the_asked_object_in_one_image_says_nothing_of_the_other() -> None:
    found = defaultdict(list)
    for item in items(4000, families=["two_images"]):
        if item.kind == "same_place":
            for image in (0, 1):
                (cell,) = [t.cell for t in item.scenes[image] if t.name in item.question]
                found[image, cell].append(item.answer == "yes")
    assert len(found) == 32
    assert 0.4 < np.mean([np.mean(truths) for truths in found.values()]) < 0.6


# --- What is drawn -----------------------------------------------------------------------------------


def style(difficulty: float) -> SceneStyle:
    return SceneStyle("test", 256, 4, difficulty, 0.0, 0.0)


@pytest.mark.parametrize("difficulty", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_is_that_of_the_objects_pixels(shape: str, difficulty: float) -> None:
    thing, how = SceneObject("red", shape, (2, 1), 8), style(difficulty)
    drafted = sample_randomness(np.random.default_rng(3), [thing.name], how)
    with_it, without = (
        render_scene(np.random.default_rng(4), drafted, things, how).astype(int) for things in ([thing], [])
    )
    rows, columns = np.nonzero(np.abs(with_it - without).sum(axis=2))
    pixels = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.subtract(pixels, object_box(drafted, thing, how))).max() <= 1.5


def test_the_box_of_its_cell_is_right_for_every_object_however_hard_the_scene() -> None:
    """So that a dialogue with as many steps as there are cells can say where an object is."""
    rng, how = np.random.default_rng(0), style(1.0)
    for shape in SHAPES:
        for _ in range(300):
            thing = SceneObject("blue", shape, (1, 3), 4)
            box = object_box(sample_randomness(rng, [thing.name], how), thing, how)
            assert box_iou(box, (64.0, 192.0, 128.0, 256.0)) >= 0.5
            assert boxes.write_answer(box, 256, 4) == "[1, 3, 2, 4]"


def test_finer_steps_give_closer_boxes() -> None:
    fine = DigitScenes(dataclasses.replace(CONFIG, families=["referring"], box_units=256, difficulty=1.0))
    coarse = DigitScenes(dataclasses.replace(CONFIG, families=["referring"], difficulty=1.0))
    for index in range(10):
        inner = boxes.read_answer(fine.sample("test", index).answer, 256, 256)
        outer = boxes.read_answer(coarse.sample("test", index).answer, 256, 4)
        assert inner is not None and outer is not None
        assert all(a >= b for a, b in zip(inner[:2], outer[:2], strict=True))
        assert all(a <= b for a, b in zip(inner[2:], outer[2:], strict=True)) and inner != outer


def test_between_frames_only_what_changes_looks_otherwise() -> None:
    task = DigitScenes(dataclasses.replace(CONFIG, families=["video"], no_zoom=1.0, difficulty=0.3))
    for index in range(12):
        item, _, _ = task._make_question("test", index)
        frames = [frame.astype(float) for frame in task.sample("test", index).originals]
        for number, (before, after) in enumerate(pairwise(frames)):
            change = (after - before).reshape(4, 64, 4, 64, 3).mean(axis=(1, 3))
            seen = {(c, r) for r, c in zip(*np.nonzero(np.abs(change).max(axis=2) > 15), strict=True)}
            cells = [{(t.name, t.cell) for t in item.scenes[number + i]} for i in (0, 1)]
            assert seen == {cell for _, cell in cells[0] ^ cells[1]}


def test_a_digit_that_stays_is_written_anew_in_every_frame() -> None:
    """Or a change would be seen without reading."""
    task = DigitScenes(dataclasses.replace(CONFIG, families=["video"], no_zoom=0.0, several=0.0))
    for index in range(6):
        item, _, _ = task._make_question("test", index)
        sample = task.sample("test", index)
        other = next(t for t in item.scenes[0] if t.name != item.inquiry)
        left, upper = 64 * other.cell[0] + 16, 64 * other.cell[1] + 16
        crops = [frame[upper : upper + 32, left : left + 32].astype(float) for frame in sample.originals]
        assert np.abs(crops[0] - crops[1]).max() > 40


# --- Scores ------------------------------------------------------------------------------------------


def test_a_box_is_right_from_half_overlap_on() -> None:
    task = DigitScenes(DigitScenesConfig(box_units=100))
    sample = Sample("x", "where?", "[10, 10, 30, 30]", (), tags={"answer_kind": "box"})
    scores = {
        "[10, 10, 30, 30]": 1,
        " [10.0,10,30,30]\n": 1,
        "[10, 10, 30, 20.1]": 0,  # a fraction of a unit
        "[10, 10, 30, 19]": 0,
        "[0, 0, 100, 100]": 0,
        "[30, 30, 10, 10]": 0,
        "[10, 10, 30]": 0,
        "at [10, 10, 30, 30]": 0,
        "[10, 10, 30, 30] [10, 10, 30, 30]": 0,
        "[NaN, 10, 30, 30]": 0,
        "[" * 99: 0,
        "": 0,
    }
    assert {answer: task.score(sample, answer) for answer in scores} == scores
    assert task.score(sample, None) == 0


_SIDES = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 16), st.integers(1, 16))


@given(_SIDES, _SIDES)
def test_overlap_is_the_same_both_ways_and_whole_only_for_equal_boxes(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int]
) -> None:
    first, second = ((x, y, x + w, y + h) for x, y, w, h in (a, b))
    shared = box_iou(first, second)
    assert shared == box_iou(second, first) and 0 <= shared <= 1
    assert (shared == 1) == (first == second)


@given(st.text() | st.text('[]0123456789-., eE"{}', max_size=40))
def test_whatever_is_answered_is_scored(text: str) -> None:
    sample = Sample("x", "where?", "[1, 1, 2, 2]", (), tags={"answer_kind": "box"})
    assert TASK.score(sample, text) in (0, 1)


def test_the_right_answer_scores_and_another_samples_does_not(samples: list[Sample]) -> None:
    for sample in samples:
        assert TASK.score(sample, sample.answer) == 1
        for other in samples:
            if other.tags["answer_kind"] == sample.tags["answer_kind"] and other.answer != sample.answer:
                assert TASK.score(sample, other.answer) == 0
                break


# --- Dialogues ---------------------------------------------------------------------------------------


def test_traces_of_all_families_can_be_had_and_read_back(tiny_model, samples: list[Sample]) -> None:
    """Regions of all looks are encoded under one inquiry, each from the image it names."""
    kinds = set()
    for sample in samples[:120]:
        trajectory = build_trace_session(tiny_model, sample).trajectory
        first = len(sample.originals)
        assert [region.source for region in trajectory.regions[:first]] == list(range(first))
        looks = sample.trace[0].boxes
        assert [(region.source, region.box) for region in trajectory.regions[first:]] == list(looks)
        assert {region.group for region in trajectory.regions[first:]} == ({first} if looks else set())
        assert trajectory.answer == sample.answer
        kinds.add(sample.tags["kind"])
    assert kinds >= ZOOMED - {"close"}


def test_the_corpus_holds_every_word_and_figure_that_samples_use(samples: list[Sample]) -> None:
    known = {word for text in TASK.corpus() for word in re.findall(r"\w+|\S", text)}
    for sample in samples:
        texts = [sample.question, sample.answer]
        texts += [text for turn in sample.trace for text in (turn.thought, turn.inquiry)]
        assert {word for text in texts for word in re.findall(r"\w+|\S", text)} <= known


def test_recipes_answer_boxes_in_the_steps_of_their_dialogue() -> None:
    for name in ("digit_scenes", "digit_scenes_gpu"):
        recipe = load_recipe(name).resolved
        assert recipe["task"]["box_units"] == recipe["model"]["dialogue"]["box_units"]
        assert recipe["task"]["families"] == FAMILIES


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("task.families=[film]", "expected one of one_image, two_images, video, referring"),
        ("task.families=[]", "task: families is empty"),
        ("task.frames=2", "below the least, 3"),
        ("task.box_units=0", "below the least, 2"),
    ],
)
def test_settings_that_cannot_be_are_named_with_their_place(setting: str, words: str) -> None:
    with pytest.raises(RecipeErrors, match=words):
        load_recipe("digit_scenes", [setting])
