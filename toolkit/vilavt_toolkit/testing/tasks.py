"""The claims that every registered task must meet."""

from __future__ import annotations

import difflib
import itertools
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from vilavt_toolkit.contracts import Box, Sample, Source, Task, Trajectory, Turn
from vilavt_toolkit.dialogue.tool_calls import CallError
from vilavt_toolkit.dialogue.traces import check_boxes_form
from vilavt_toolkit.errors import InputError, UsageError, VilavtError
from vilavt_toolkit.registry import rewards, sources, tasks
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_KNOWN_TAGS = ("needs_zoom", "several", "answer_kind", "group")
"""Tags that evaluation and rewards read; a task may set others."""
_for_every_instance = bench.for_every_instance(tasks)


@_for_every_instance
def samples_are_reproducible(instance: Instance[Task]) -> None:
    """The same settings, split and index give the same bytes, whatever was asked before."""
    # As bytes: equality of samples could overlook arrays and types that differ.
    # One asks forwards, the other backwards: a shared random generator would give other samples.
    first, second = instance.build(), instance.build()
    for split in ("train", "test"):
        indices = range(min(3, first.length(split)))
        forward = [pickle.dumps(first.sample(split, index)) for index in indices]
        backward = [pickle.dumps(second.sample(split, index)) for index in reversed(indices)]
        assert forward == backward[::-1], f"samples of '{split}' depend on what was asked before"
        assert len(set(forward)) == len(forward), f"samples of '{split}' repeat"


@_for_every_instance
def scores_its_own_answers(instance: Instance[Task]) -> None:
    """The sample's own answer scores 1, and a missing one 0."""
    task = instance.build()
    for sample in _first_samples(task):
        assert task.score(sample, sample.answer) == 1.0, f"'{sample.answer}' is not right for {sample.id}"
        assert task.score(sample, None) == 0.0, "a missing answer scores"


def _first_samples(task: Task, count: int = 8) -> Iterator[Sample]:
    for split in ("train", "test"):
        for index in range(min(count, task.length(split))):
            yield task.sample(split, index)


@_for_every_instance
def writes_traces_that_can_be_learned(instance: Instance[Task]) -> None:
    """Every turn of a trace zooms into boxes of regions already shown, or answers; each question's last one answers."""
    for sample in _first_samples(instance.build()):
        # Region indices count the overviews first. Without an original there is nothing to zoom into.
        shown: list[Any] = list(sample.originals)
        # A video has as many overviews as its source chooses. Which original a region shows is then not known here.
        is_countable = any(turn.boxes for turn in sample.trace) and not _shows_several(sample.originals)
        for number, turn in enumerate(sample.trace):
            place = f"{sample.id}, turn {number} of the trace"
            last = number == len(sample.trace) - 1 or bool(sample.trace[number + 1].question)
            assert (turn.answer is not None) == last, f"{place}: the last turn must answer, and no other"
            assert bool(turn.boxes) != last, f"{place}: a turn must either name boxes or answer"
            try:
                check_boxes_form(turn.boxes)
            except CallError as error:
                raise AssertionError(f"{place}: {error}") from error
            zoomed = []
            for index, box in turn.boxes:
                exists = index >= 0 and (index < len(shown) or not is_countable)
                assert exists, f"{place}: region {index} was not shown yet"
                zoomed.append(shown[index] if is_countable else None)
                _check_box(zoomed[-1], box, place)
            shown += zoomed


def _open_originals(original: Any) -> Iterator[Source]:
    """Open an original with every registered source that can."""
    for entry in sources.entries():
        try:
            yield entry.cls.open(original, entry.config())
        except VilavtError:
            continue


def _shows_several(originals: Sequence[Any]) -> bool:
    """Return True if a source may show an original more than once, or if none opens it."""
    for original in originals:
        counts = [len(source.overviews()) for source in _open_originals(original)]
        if not counts or max(counts) > 1:
            return True
    return False


def _check_box(original: Any, box: Box, place: str) -> None:
    """Assert that a box is ordered, and inside the original (of a cloud: overlaps it) if a source can open that."""
    odd, axes = len(box) % 2, len(box) // 2
    lows, highs = box[odd : odd + axes], box[odd + axes :]
    is_ordered = axes > 1 and all(low < high for low, high in zip(lows, highs, strict=True))
    assert is_ordered, f"{place}: box {box} is not (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
    extents = [] if original is None else [source.extent for source in _open_originals(original)]
    for extent in (extent for extent in extents if len(extent) == len(box)):
        for low, high, first, end in zip(lows, highs, extent[odd : odd + axes], extent[odd + axes :], strict=True):
            # Training clips boxes. A cloud ends where its last point happens to lie, while an image's sides are known.
            is_right = low < end and high > first if axes > 2 else low >= first - 1e-3 and high <= end + 1e-3
            assert is_right, f"{place}: box {box} is not inside the original, {extent}"


@_for_every_instance
def sets_tags_that_are_read(instance: Instance[Task]) -> None:
    """Tags that the toolkit reads have their names and types, and the reward `answer` can read the sample's answer."""
    for sample in _first_samples(instance.build()):
        for tag, value in sample.tags.items():
            close = [] if tag in _KNOWN_TAGS else difflib.get_close_matches(tag, _KNOWN_TAGS, 1, 0.8)
            assert not close, f"{sample.id}: no part of the toolkit reads the tag '{tag}'; write '{close[0]}'"
            # Evaluation compares with `is True`, so that 1 or a NumPy bool would fall out of its columns unseen.
            if tag in ("needs_zoom", "several"):
                assert type(value) is bool, f"{sample.id}: tag '{tag}' is {value!r}; it must be True or False"
        if "answer_kind" in sample.tags and "answer" in rewards.names():
            reward = bench.build(rewards.get("answer"))
            try:
                reward.score(sample, Trajectory(turns=[Turn(answer=sample.answer)]))
            except InputError as error:
                raise AssertionError(str(error)) from error


@_for_every_instance
def has_a_corpus_of_text(instance: Instance[Task]) -> None:
    """The corpus has texts, the same at each reading."""
    task = instance.build()
    # 50 at most: corpora may be endless.
    texts = list(itertools.islice(task.corpus(), 50))
    assert texts and all(isinstance(text, str) for text in texts), "the corpus is empty or no text"
    assert texts == list(itertools.islice(task.corpus(), 50)), "the corpus differs from one reading to the next"


@_for_every_instance
def refuses_an_unknown_split(instance: Instance[Task]) -> None:
    """An unknown split raises a UsageError that names it."""
    try:
        instance.build().length("no_such_split")
    except UsageError as error:
        assert "no_such_split" in str(error), f"{str(error)!r} does not name the split"
    else:
        raise AssertionError("an unknown split has a length")


CLAIMS = (
    samples_are_reproducible,
    scores_its_own_answers,
    writes_traces_that_can_be_learned,
    sets_tags_that_are_read,
    has_a_corpus_of_text,
    refuses_an_unknown_split,
)
