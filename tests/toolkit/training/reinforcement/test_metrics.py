"""What is watched during reinforcement: rates as a user would count them, a collapse said once."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.contracts import RegionCall, ShownRegion, ToolCall, Trajectory, Turn
from vilavt_toolkit.training.reinforcement.metrics import CollapseWatch, TokenAverages, compute_rollout_metrics

CALL = Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 1, 1]}),), "what"))


def rollout(turns, zooms=(), cut_short=False, scores=(1.0, 0.0)):
    """A rollout whose carried-out calls made so many regions each."""
    regions = [ShownRegion(0, None, 0, 1, 4, (2, 2))]
    for group, count in enumerate(zooms, 1):
        regions += [ShownRegion(0, (0, 0, 1, 1), group, 9, 4, (2, 2))] * count
    trajectory = Trajectory([1] * 6, [True] * 6, [0.0] * 6, regions, turns=list(turns), cut_short=cut_short)
    return SimpleNamespace(trajectory=trajectory, scores=scores, reward=2 * scores[0] + scores[1])


def test_rates_count_rollouts_turns_and_calls():
    answer, broken = Turn("so", answer="3"), Turn(problem="no tag")
    groups = [
        [rollout([CALL, answer], [2]), rollout([answer], scores=(0.0, 0.5))],
        [rollout([CALL, broken, CALL, answer], [1, 1]), rollout([CALL, broken, broken], cut_short=True)],
    ]
    found = compute_rollout_metrics(groups, ["answer", "format"], [False, True])
    assert found["tool_rate"] == 2 / 4 and found["valid_tool_rate"] == 3 / 7
    assert found["produced"] == 6 and found["rollouts"] == 4
    assert found["turns"] == 10 / 4 and found["truncated"] == 1 / 4 and found["zero_variance"] == 1 / 2
    assert (found["reward/answer"], found["reward/format"], found["reward"]) == (0.75, 0.125, 1.625)


def test_a_rate_of_nothing_is_not_told():
    assert "valid_tool_rate" not in compute_rollout_metrics([[rollout([Turn(answer="3")])] * 2], ["a", "b"], [True])


@given(st.lists(st.lists(st.floats(0, 9, width=32), min_size=1, max_size=9), min_size=1, max_size=5))
def test_means_over_tokens_do_not_depend_on_how_they_were_split(pieces):
    tally = TokenAverages()
    for piece in pieces:
        tally.add(len(piece), entropy=torch.tensor(piece))
        tally.keep_largest("most", torch.tensor(piece))
    values = [value for piece in pieces for value in piece]
    assert float(tally.compute_means()["entropy"]) == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-6)
    assert float(tally.compute_means()["most"]) == max(values)


def test_values_of_tokens_that_were_counted_already_are_averaged_over_the_same_tokens():
    averages = TokenAverages()
    averages.add(4, entropy=torch.tensor([1.0, 2.0, 3.0, 2.0]))
    averages.add(0, kl=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert {name: float(value) for name, value in averages.compute_means().items()} == {"entropy": 2.0, "kl": 0.5}
    assert TokenAverages().compute_means() == {}


def watched(rates, entropies=None):
    watch = CollapseWatch()
    for step, rate in enumerate(rates):
        watch.observe_step(step, tool_rate=rate, entropy=(entropies or [1.0] * len(rates))[step])
        watch2 = CollapseWatch()
        watch2.load_json(json.loads(json.dumps(watch.to_json())))  # as a resumed run would
        watch = watch2
    return watch


def test_a_collapse_is_said_once_with_its_numbers(caplog):
    with caplog.at_level(logging.WARNING):
        watched([0.5] * 10 + [0.02] * 30)
    (record,) = caplog.records
    assert "step 19: tool_rate has collapsed: 0.02 on average over the last 10 steps, 0.5 over the first 10" in (
        record.getMessage()
    )
    assert "learning rate" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        watched([0.5] * 40, [2.0] * 15 + [0.01] * 25)
    assert len(caplog.records) == 1 and "entropy has collapsed" in caplog.text


def test_fewer_needless_zooms_are_no_collapse_and_neither_is_a_tool_that_was_never_used(caplog):
    with caplog.at_level(logging.WARNING):
        watched([0.8] * 10 + [0.3] * 30)
        watched([0.02] * 10 + [0.0] * 30)
    assert not caplog.records


@pytest.mark.parametrize(
    ("first", "now", "is_collapse"),
    [(0.5, 0.049, True), (0.5, 0.051, False), (0.051, 0.001, True), (0.049, 0.0, False)],
)
def test_a_collapse_is_a_tenth_of_a_start_that_was_worth_something(caplog, first, now, is_collapse):
    with caplog.at_level(logging.WARNING):
        watched([first] * 10 + [now] * 10)
    assert bool(caplog.records) is is_collapse


def test_entropy_that_begins_at_next_to_nothing_cannot_collapse(caplog):
    with caplog.at_level(logging.WARNING):
        watched([0.5] * 20, [9e-4] * 10 + [0.0] * 10)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        watched([0.5] * 20, [2e-3] * 10 + [0.0] * 10)
    assert "entropy" in caplog.text
