"""The claims that every registered task must meet."""

from __future__ import annotations

import itertools
import pickle

from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

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
    """The sample's own answer scores 1, a missing one 0, and a trace ends with an answer."""
    task = instance.build()
    for split in ("train", "test"):
        for index in range(min(8, task.length(split))):
            sample = task.sample(split, index)
            assert task.score(sample, sample.answer) == 1.0, f"'{sample.answer}' is not right for {sample.id}"
            assert task.score(sample, None) == 0.0, "a missing answer scores"
            if sample.trace:
                assert sample.trace[-1].answer is not None, f"the trace of {sample.id} ends without an answer"


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
    has_a_corpus_of_text,
    refuses_an_unknown_split,
)
