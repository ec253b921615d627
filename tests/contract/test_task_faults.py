"""The contract test of tasks fails on tasks that break their contract."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from vilavt_toolkit.contracts import Sample, Task, TraceTurn
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing import check_task
from vilavt_toolkit.testing.isolation import isolated_registries

load_builtin()

BOX = (8, 8, 24, 24)
ANSWER = TraceTurn("read 7", answer="7")


class Digits(Task):
    """A correct task, for the faulty ones to depart from."""

    changes: ClassVar[dict] = {}

    def __init__(self, config):
        pass

    @classmethod
    def tiny(cls):
        return NoSettings()

    def length(self, split):
        if split not in ("train", "test"):
            raise UsageError(f"no split '{split}'")
        return 3

    def sample(self, split, index):
        trace = (TraceTurn("closer", "its digit", ((0, BOX),)), TraceTurn("more", "it", ((1, BOX),)), ANSWER)
        tags = {"needs_zoom": True, "several": False, "answer_kind": "number", "kind": "digit"}
        picture = np.full((32, 48, 3), index, np.uint8)
        return replace(Sample(f"{split}/{index}", "which digit?", "7", (picture,), trace, tags=tags), **self.changes)

    def corpus(self):
        yield from ("which digit?", "closer")

    def score(self, sample, answer):
        return float(answer == sample.answer)


def check(**changes):
    """Register the task with these changes of its samples, and check it."""
    with isolated_registries():
        tasks.register("faulty", NoSettings)(type("Faulty", (Digits,), {"changes": changes}))
        check_task("faulty")


def zoom(*boxes):
    return {"trace": (TraceTurn("closer", "its digit", boxes), ANSWER)}


def test_a_correct_task_passes():
    check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (zoom(BOX), "is not a pair"),
        (zoom(("0", BOX)), "is not a pair"),
        (zoom((0, (8, 8, float("nan"), 24))), "finite numbers"),
        (zoom((1, BOX)), "turn 0 of the trace: region 1 was not shown yet"),
        (zoom((0, (24, 8, 8, 24))), "x1 < x2"),
        (zoom((0, (0, 0, 32, 48))), "not inside the original"),
        ({"trace": (TraceTurn("closer", "its digit", ((0, BOX),)),)}, "the last turn must answer"),
        ({"trace": (TraceTurn("closer"), ANSWER)}, "either name boxes or answer"),
        ({"tags": {"need_zoom": True}}, "'need_zoom'; write 'needs_zoom'"),
        ({"tags": {"needs_zoom": np.True_}}, "must be True or False"),
        ({"tags": {"answer_kind": "digit"}}, "It must be one of text"),
        ({"tags": {"answer_kind": "yes_no"}}, "is no yes or no"),
    ],
)
def test_a_faulty_task_is_caught(changes, words):
    with pytest.raises(AssertionError, match=words):
        check(**changes)


def test_the_traces_of_originals_that_no_source_opens_are_checked_by_their_form():
    check(originals=("no_such_file.xyz",), **zoom((3, BOX)))
    with pytest.raises(AssertionError, match="x1 < x2"):
        check(originals=("no_such_file.xyz",), **zoom((3, (24, 8, 8, 24))))
